//! Whatever becomes of a runtime: attached shims end, detached ones are found again, and neither a
//! zombie nor a stray is left.

mod common;

use std::fs;
use std::process::Output;
use std::time::Duration;

use common::boxes::{dir_of, in_two_processes, open, options, script, sleeping, started, until};
use common::own_process::block_on;
use common::{DEADLINE, eventually, eventually_blocking, is_gone, kill};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout, fork};
use tokio::runtime::Handle;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxStatus, Ready, RuntimeOptions, VmmRuntime};

/// A payload with a descendant that has left its process group.
fn with_descendant() -> BoxSpec {
    script("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/stray; wait")
}

/// One attached box, one detached, one that is being started; then `end`.
fn run_and_end(options: RuntimeOptions, end: impl FnOnce(VmmRuntime)) {
    block_on(async {
        let runtime = VmmRuntime::open(options).await.unwrap();
        let attached = started(&runtime, with_descendant().name("attached")).await;
        started(&runtime, sleeping().name("detached").detached(true)).await;
        let starting = sleeping().name("starting").ready(Ready::Notified);
        runtime.create(starting).await.unwrap();
        tokio::spawn({
            let runtime = runtime.clone();
            async move { runtime.start("starting").await }
        });
        let boxes = attached.id.clone();
        let home = std::env::var_os("SHIM_TEST_HOME_OF_ANOTHER_PROCESS").unwrap();
        let stray = std::path::Path::new(&home)
            .join("boxes")
            .join(boxes)
            .join("stray");
        eventually("the descendant", || {
            fs::read_to_string(&stray).is_ok_and(|text| text.ends_with('\n'))
        })
        .await;
        tokio::task::block_in_place(|| end(runtime));
    });
}

/// The first process has ended; the second finds one box running, and nothing else.
fn check_what_is_left(home: &PerTestBoxHome) {
    block_on(async {
        let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
        let attached = runtime.info("attached").await.unwrap();
        let stray = dir_of(home, &attached.id).join("stray");
        let stray = fs::read_to_string(stray).unwrap().trim().parse().unwrap();
        // Its watchdog has hung up: it ends by itself, in its own time.
        let attached = runtime.wait(&attached.id).await.unwrap();
        assert_eq!(attached.status, BoxStatus::Stopped, "{attached:?}");
        eventually("the end of the descendant", || is_gone(stray)).await;
        until_not_running(&runtime, "starting").await;
        let detached = runtime.info("detached").await.unwrap();
        assert_eq!(detached.status, BoxStatus::Running);
        runtime.remove("detached", true).await.unwrap();
        assert!(is_gone(detached.pid.unwrap()));
    });
}

async fn until_not_running(runtime: &VmmRuntime, id: &str) {
    runtime.wait(id).await.unwrap();
    assert_ne!(runtime.info(id).await.unwrap().status, BoxStatus::Running);
}

#[test]
fn a_process_that_drops_its_runtime_and_ends() {
    in_two_processes(
        "a_process_that_drops_its_runtime_and_ends",
        |options| run_and_end(options, drop),
        |home, first: Output| {
            assert!(first.status.success(), "{first:?}");
            check_what_is_left(home);
        },
    );
}

#[test]
fn a_process_that_calls_exit_in_the_middle() {
    in_two_processes(
        "a_process_that_calls_exit_in_the_middle",
        |options| run_and_end(options, |_| std::process::exit(3)),
        |home, first| {
            assert_eq!(first.status.code(), Some(3), "{first:?}");
            check_what_is_left(home);
        },
    );
}

#[test]
fn a_process_that_panics() {
    in_two_processes(
        "a_process_that_panics",
        |options| run_and_end(options, |_| panic!("user code")),
        |home, first| {
            assert_eq!(first.status.code(), Some(101), "{first:?}");
            check_what_is_left(home);
        },
    );
}

#[test]
fn a_process_that_is_killed() {
    in_two_processes(
        "a_process_that_is_killed",
        |options| {
            run_and_end(options, |_| {
                kill(std::process::id(), Signal::SIGKILL);
                loop {
                    std::thread::park();
                }
            });
        },
        |home, first| {
            assert!(!first.status.success(), "{first:?}");
            check_what_is_left(home);
        },
    );
}

/// The child inherits the watchdog's pipe.
#[test]
fn a_process_that_is_killed_and_leaves_a_child_that_it_forked_without_an_exec() {
    in_two_processes(
        "a_process_that_is_killed_and_leaves_a_child_that_it_forked_without_an_exec",
        |options| {
            run_and_end(options, |runtime| {
                let attached = Handle::current()
                    .block_on(runtime.info("attached"))
                    .unwrap();
                println!(
                    "pids: {} {} {}",
                    attached.pid.unwrap(),
                    attached.payload_pid.unwrap(),
                    fork_without_exec()
                );
                kill(std::process::id(), Signal::SIGKILL);
                loop {
                    std::thread::park();
                }
            });
        },
        |home, first| {
            let printed = String::from_utf8_lossy(&first.stdout);
            let (_, pids) = printed.split_once("pids: ").unwrap();
            let pids: Vec<u32> = pids
                .split_whitespace()
                .take(3)
                .map(|pid| pid.parse().unwrap())
                .collect();
            let [shim, payload, child] = pids[..] else {
                panic!("{pids:?}");
            };
            eventually_blocking("the end of the attached box", || {
                is_gone(shim) && is_gone(payload)
            });
            assert!(!is_gone(child));
            // It holds the home's lock, too.
            kill(child, Signal::SIGKILL);
            eventually_blocking("the end of the child", || is_gone(child));
            check_what_is_left(home);
        },
    );
}

/// A child that holds all descriptors of this process but for the standard ones.
#[allow(unsafe_code)]
fn fork_without_exec() -> Pid {
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    // SAFETY: the child makes only async-signal-safe calls, signal-safety(7).
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Whoever started this process reads its output to the end.
            let _ = dup2_stdout(&null).and_then(|()| dup2_stderr(&null));
            // Ends it if the test fails.
            nix::unistd::alarm::set(2 * DEADLINE.as_secs() as u32);
            loop {
                nix::unistd::pause();
            }
        }
    }
}

#[test]
fn a_process_that_shuts_down_synchronously_from_a_drop() {
    struct AtTheEnd(VmmRuntime);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            let report = self.0.shutdown_sync(Duration::from_secs(60));
            assert!(!report.stopped.is_empty());
            assert_eq!(report.left_running.len(), 1);
        }
    }
    in_two_processes(
        "a_process_that_shuts_down_synchronously_from_a_drop",
        |options| run_and_end(options, |runtime| drop(AtTheEnd(runtime))),
        |home, first| {
            assert!(first.status.success(), "{first:?}");
            check_what_is_left(home);
        },
    );
}

#[tokio::test]
async fn a_runtime_that_is_dropped_lets_its_attached_shims_end_and_collects_them() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let attached = started(&runtime, with_descendant()).await;
    let detached = started(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    for pid in [attached.pid.unwrap(), attached.payload_pid.unwrap()] {
        eventually("the end of the attached box", || is_gone(pid)).await;
    }
    assert!(!is_gone(detached.pid.unwrap()));
    // The home is free at once, and the other one is found.
    let runtime = open(&home).await;
    until(&runtime, &attached.id, BoxStatus::Stopped).await;
    until(&runtime, &detached.id, BoxStatus::Running).await;
    runtime.remove(&detached.id, true).await.unwrap();
}

/// It does not need the caller's, and what was begun there goes on.
#[test]
fn a_runtime_whose_callers_tokio_runtime_is_gone_goes_on_and_leaves_no_zombie() {
    let home = PerTestBoxHome::new();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let (runtime, running, starting) = tokio.block_on(async {
        let runtime = open(&home).await;
        let running = started(&runtime, sleeping()).await;
        let starting = sleeping().ready(Ready::Notified);
        let starting = runtime.create(starting).await.unwrap().id;
        tokio::spawn({
            let (runtime, id) = (runtime.clone(), starting.clone());
            async move { runtime.start(&id).await }
        });
        let record = dir_of(&home, &starting).join("shim.pid");
        eventually("the other shim", || record.exists()).await;
        (runtime, running, starting)
    });
    drop(tokio);
    let record = dir_of(&home, &starting).join("shim.pid");
    let record = vmm_runtime::PidRecord::read(&record).unwrap().unwrap();
    let killed = block_on(started(&runtime, sleeping()));
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    eventually_blocking("a death is known", || {
        let metrics = futures::executor::block_on(runtime.metrics());
        metrics.boxes_failed_total == 1
    });
    drop(runtime);
    for pid in [running.pid.unwrap(), record.pid] {
        eventually_blocking("the end of the shim", || is_gone(pid));
    }
}

/// Also when the end of a run is still being seen to.
#[tokio::test]
async fn the_home_of_a_dropped_runtime_can_be_opened_at_once() {
    let home = PerTestBoxHome::new();
    for round in 0..30 {
        let runtime = open(&home).await;
        let running = started(&runtime, sleeping()).await;
        match round % 3 {
            0 => runtime.remove(&running.id, true).await.unwrap(),
            1 => kill(running.pid.unwrap(), Signal::SIGKILL),
            _ => {
                let mut shutdown = std::pin::pin!(runtime.shutdown(Duration::from_secs(60)));
                let _ = futures::FutureExt::now_or_never(shutdown.as_mut());
            }
        }
        drop(runtime);
    }
    let runtime = open(&home).await;
    for info in runtime.list().await {
        runtime.remove(&info.id, true).await.unwrap();
    }
}

#[tokio::test]
async fn an_aborted_user_task_takes_nothing_with_it_but_itself() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let task = tokio::spawn({
        let runtime = runtime.clone();
        async move {
            started(&runtime, sleeping().name("kept")).await;
            std::future::pending::<()>().await;
        }
    });
    while runtime
        .info("kept")
        .await
        .map_or(true, |info| info.status != BoxStatus::Running)
    {
        common::pause().await;
    }
    task.abort();
    let _ = task.await;
    let info = runtime.info("kept").await.unwrap();
    assert_eq!(info.status, BoxStatus::Running);
    runtime.remove("kept", true).await.unwrap();
}
