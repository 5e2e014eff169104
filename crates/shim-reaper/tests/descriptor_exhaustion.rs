//! Without free descriptors, the reaper finds exits by interval sweeps and opens the pidfds later.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::log_counter::LogCounter;
use common::own_process::{block_on, exhaust_descriptors, ignore_sigchld, in_own_process};
use common::{Fixture, eventually, exits_on_eof, is_gone, kernel_is_at_least};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use shim_reaper::{ShimExit, ShimReaper};

const SHIMS: usize = 10;

#[test]
fn registering_works_without_descriptors() {
    in_own_process("registering_works_without_descriptors", || {
        let log = LogCounter::install();
        block_on(async {
            let fixture =
                Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)));
            fixture.sweeps(1).await;
            let mut children: Vec<_> = (0..SHIMS)
                .map(|_| exits_on_eof(7).spawn().unwrap())
                .collect();
            let mut stdins: Vec<_> = children
                .iter_mut()
                .map(|child| child.stdin.take())
                .collect();
            let files = exhaust_descriptors();

            let mut handles = Vec::new();
            for (i, child) in children.into_iter().enumerate() {
                handles.push(if i % 2 == 0 {
                    fixture.reaper.register(child.id()).unwrap()
                } else {
                    fixture.reaper.register_child(child).unwrap()
                });
            }
            assert_eq!(fixture.reaper.stats().without_pidfd, SHIMS as u64);
            fixture.expect(0, 0, SHIMS as u64).await;
            assert_eq!(log.warnings(), 1, "the reaper logs the shortage once");

            // This also frees a descriptor.
            drop(stdins.pop());
            let last = handles.pop().unwrap();
            assert_eq!(
                last.await.unwrap().code(),
                Some(7),
                "the shim is reaped without a pidfd"
            );
            fixture.expect(1, 0, SHIMS as u64 - 1).await;

            drop(files);
            eventually("all shims have pidfds", || {
                fixture.reaper.stats().without_pidfd == 0
            })
            .await;
            assert_eq!(pidfds(), SHIMS - 1);
            fixture.sweeps(3).await;
            fixture.expect(1, 0, SHIMS as u64 - 1).await;
            drop(stdins);
            for handle in handles {
                let pid = handle.id();
                assert_eq!(handle.await.unwrap().code(), Some(7));
                eventually("the shim is gone", || is_gone(pid)).await;
            }
            fixture.expect(SHIMS as u64, 0, 0).await;
            eventually("all pidfds are closed", || pidfds() == 0).await;
            assert_eq!(log.warnings(), 1);
        });
    });
}

#[test]
fn a_reaper_that_starts_without_descriptors_opens_pidfds_later() {
    in_own_process(
        "a_reaper_that_starts_without_descriptors_opens_pidfds_later",
        || {
            block_on(async {
                let mut child = exits_on_eof(8).spawn().unwrap();
                let stdin = child.stdin.take();
                let files = exhaust_descriptors();
                let fixture =
                    Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)));
                let handle = fixture.reaper.register_child(child).unwrap();
                fixture.sweeps(2).await;
                assert_eq!(fixture.reaper.stats().without_pidfd, 1);

                drop(files);
                eventually("the shim has a pidfd", || {
                    fixture.reaper.stats().without_pidfd == 0
                })
                .await;
                assert_eq!(pidfds(), 1);
                drop(stdin);
                assert_eq!(handle.await.unwrap().code(), Some(8));
                fixture.expect(1, 0, 0).await;
            });
        },
    );
}

#[test]
fn commands_of_std_spawn_with_as_few_free_descriptors_as_std_needs() {
    in_own_process(
        "commands_of_std_spawn_with_as_few_free_descriptors_as_std_needs",
        || {
            block_on(async {
                let fixture =
                    Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)));
                fixture.sweeps(1).await;
                let mut files = exhaust_descriptors();
                let mut spawned = 0;
                for free in 0..16 {
                    let by_std = Command::new("true").spawn();
                    let by_reaper = fixture.reaper.spawn(Command::new("true"));
                    assert!(
                        by_std.is_err() || by_reaper.is_ok(),
                        "with {free} free descriptors: {by_reaper:?}"
                    );
                    if let Ok(mut child) = by_std {
                        assert!(child.wait().unwrap().success());
                    }
                    if let Ok(handle) = by_reaper {
                        assert!(handle.await.unwrap().success());
                        spawned += 1;
                    }
                    // A sweep closes the pidfd of the last shim.
                    fixture.sweeps(2).await;
                    drop(files.pop());
                }
                assert!(spawned > 8);
            });
        },
    );
}

#[test]
fn the_pidfd_of_a_child_is_kept_without_descriptors() {
    in_own_process("the_pidfd_of_a_child_is_kept_without_descriptors", || {
        block_on(async {
            ignore_sigchld();
            let fixture = Fixture::new(ShimReaper::builder());
            fixture.sweeps(1).await;
            let mut child = pidfd_spawn::Command::new("sh")
                .args(["-c", "read line; exit 7"])
                .stdin(pidfd_spawn::Stdio::piped())
                .spawn()
                .unwrap();
            let stdin = child.stdin.take();
            let _files = exhaust_descriptors();
            let handle = fixture.reaper.register_child(child).unwrap();
            assert_eq!(fixture.reaper.stats().without_pidfd, 0);
            // The kernel reaps the child.
            drop(stdin);
            expect_status(&handle.await.unwrap());
        });
    });
}

#[test]
fn the_pidfd_of_a_child_is_kept_without_a_descriptor_for_the_epoll() {
    in_own_process(
        "the_pidfd_of_a_child_is_kept_without_a_descriptor_for_the_epoll",
        || {
            // The worker cannot run, and take the descriptor, before the spawn.
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio.block_on(async {
                ignore_sigchld();
                let mut command = pidfd_spawn::Command::new("sh");
                command.args(["-c", "read line <&3; exit 7"]);
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
                command.fd(3, reader);
                let mut files = exhaust_descriptors();
                let fixture = Fixture::new(ShimReaper::builder());
                files.pop();
                let handle = fixture.reaper.spawn(&mut command).unwrap();
                assert_eq!(fixture.reaper.stats().without_pidfd, 0);
                drop(command);
                // The kernel reaps the child.
                drop(writer);
                expect_status(&handle.await.unwrap());
            });
        },
    );
}

fn expect_status(exit: &ShimExit) {
    if kernel_is_at_least(6, 15) {
        assert_eq!(exit.code(), Some(7), "{exit:?}");
    }
}

/// Returns the number of pidfds that this process has open.
fn pidfds() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().contains("pidfd"))
        .count()
}
