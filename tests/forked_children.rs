//! Children that the program forks without an execve(2), and that have a copy of the VMM runtime.

mod common;

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::process;
use std::thread;
use std::time::Duration;

use common::boxes::{in_two_processes, open_runtime, sleeping, start_box};
use common::fork_child;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, as_pid, eventually, kill};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, RuntimeError, VmmRuntime};
use vmm_shim::RuntimeProcess;

/// The time that a child holds the lock of the home.
const RELEASE_DELAY: Duration = Duration::from_millis(300);

#[test]
fn a_home_opens_once_a_forked_child_of_its_dead_holder_releases_it() {
    in_two_processes(
        "a_home_opens_once_a_forked_child_of_its_dead_holder_releases_it",
        |options| {
            let go = options.home.join("go");
            let go = CString::new(go.as_os_str().as_bytes()).unwrap();
            block_on(async {
                let _runtime = VmmRuntime::open(options).await.unwrap();
                fork_child(|| {
                    for descriptor in 0..3 {
                        // SAFETY: the child uses no standard stream.
                        unsafe { libc::close(descriptor) };
                    }
                    for _ in 0..DEADLINE.as_millis() {
                        // SAFETY: the path ends with a NUL.
                        if unsafe { libc::access(go.as_ptr(), libc::F_OK) } == 0 {
                            break;
                        }
                        // SAFETY: takes a number only.
                        unsafe { libc::usleep(1000) };
                    }
                });
                kill(process::id(), Signal::SIGKILL);
            });
        },
        |home, _| {
            let go = home.path().join("go");
            let releaser = thread::spawn(move || {
                thread::sleep(RELEASE_DELAY);
                fs::write(go, "").unwrap();
            });
            block_on(async {
                let runtime = VmmRuntime::open(common::boxes::options(home.path())).await;
                releaser.join().unwrap();
                runtime.unwrap().shutdown(DEADLINE).await;
            });
        },
    );
}

#[test]
fn a_forked_child_that_shuts_down_its_copy_does_not_affect_the_parent() {
    let test = "a_forked_child_that_shuts_down_its_copy_does_not_affect_the_parent";
    in_own_process(test, || {
        let home = PerTestBoxHome::new();
        block_on(async {
            let mut runtime = ManuallyDrop::new(open_runtime(&home).await);
            let bx = start_box(&runtime, sleeping()).await;
            let child = fork_child(|| {
                // As in an atexit(3) handler.
                runtime.shutdown_sync(Duration::ZERO);
                // SAFETY: this is the copy in the child, which does not use it again.
                unsafe { ManuallyDrop::drop(&mut runtime) };
            });
            eventually("the child exits", || {
                let status = waitpid(as_pid(child), Some(WaitPidFlag::WNOHANG));
                status.unwrap() != WaitStatus::StillAlive
            })
            .await;

            let lock = File::open(home.path().join("lock")).unwrap();
            let second = lock.try_lock();
            assert!(
                matches!(second, Err(TryLockError::WouldBlock)),
                "{second:?}"
            );
            let info = runtime.info(&bx.id).await.unwrap();
            assert_eq!((info.status, info.pid), (BoxStatus::Running, bx.pid));
            // The parent still notices the death of its shims.
            kill(bx.pid.unwrap(), Signal::SIGKILL);
            let ended = runtime.wait(&bx.id).await.unwrap();
            assert_eq!(ended.signal, Some(9));
            runtime.shutdown(DEADLINE).await;
        });
    });
}

#[test]
fn a_forked_child_does_not_describe_itself_as_its_parent() {
    let test = "a_forked_child_does_not_describe_itself_as_its_parent";
    in_own_process(test, || {
        let described_pid = || {
            let this = serde_json::to_value(RuntimeProcess::this().unwrap()).unwrap();
            this["pid"].as_u64().unwrap()
        };
        assert_eq!(described_pid(), u64::from(process::id()));
        let child = fork_child(|| {
            let is_own = described_pid() == u64::from(process::id());
            // SAFETY: takes a number only.
            unsafe { libc::_exit(i32::from(!is_own)) }
        });
        let status = waitpid(as_pid(child), None).unwrap();
        assert_eq!(status, WaitStatus::Exited(as_pid(child), 0));
    });
}

#[test]
fn a_forked_child_cannot_measure_a_box() {
    let test = "a_forked_child_cannot_measure_a_box";
    in_own_process(test, || {
        let home = PerTestBoxHome::new();
        block_on(async {
            let runtime = open_runtime(&home).await;
            let bx = start_box(&runtime, sleeping()).await;
            let child = fork_child(|| {
                // SAFETY: takes a number only. Ends a child that waits for a thread of its parent.
                unsafe { libc::alarm(60) };
                let usage = futures::executor::block_on(runtime.usage(&bx.id));
                let zombies = futures::executor::block_on(runtime.count_zombies());
                let is_closed = matches!(usage, Err(RuntimeError::Closed)) && zombies.is_none();
                // SAFETY: takes a number only.
                unsafe { libc::_exit(i32::from(!is_closed)) }
            });
            let status = waitpid(as_pid(child), None).unwrap();
            assert_eq!(status, WaitStatus::Exited(as_pid(child), 0));
            runtime.shutdown(DEADLINE).await;
        });
    });
}
