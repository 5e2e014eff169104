//! However a VMM runtime ends, attached shims end with it, the next VMM runtime finds the detached
//! ones, and no zombie or orphan is left.

mod common;

use std::fs;
use std::process::Output;
use std::time::Duration;

use common::boxes::{
    HOME_VAR, box_dir, in_two_processes, open_runtime, options, script, sleeping, start_box,
    wait_for_status,
};
use common::own_process::block_on;
use common::{DEADLINE, eventually, eventually_blocking, is_gone, kill};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout, fork};
use tokio::runtime::Handle;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxStatus, Ready, Removal, RuntimeOptions, VmmRuntime};

/// Returns a spec whose payload has a descendant outside its process group.
fn with_descendant() -> BoxSpec {
    script("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait")
}

/// Starts an attached box, a detached one, and one that never becomes ready. Then calls `end`.
fn run_and_end(options: RuntimeOptions, end: impl FnOnce(VmmRuntime)) {
    block_on(async {
        let runtime = VmmRuntime::open(options).await.unwrap();
        let attached = start_box(&runtime, with_descendant().name("attached")).await;
        start_box(&runtime, sleeping().name("detached").detached(true)).await;
        let never_ready = sleeping().name("starting").ready(Ready::Notified);
        runtime.create(never_ready).await.unwrap();
        tokio::spawn({
            let runtime = runtime.clone();
            async move { runtime.start("starting").await }
        });
        let home = std::env::var_os(HOME_VAR).unwrap();
        let orphan = std::path::Path::new(&home)
            .join("boxes")
            .join(&attached.id)
            .join("orphan");
        eventually("the descendant starts", || {
            fs::read_to_string(&orphan).is_ok_and(|text| text.ends_with('\n'))
        })
        .await;
        tokio::task::block_in_place(|| end(runtime));
    });
}

/// Checks after the end of the first process that only the detached box still runs.
fn check_only_detached_runs(home: &PerTestBoxHome) {
    block_on(async {
        let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
        let attached = runtime.info("attached").await.unwrap();
        let orphan = box_dir(home, &attached.id).join("orphan");
        let orphan = fs::read_to_string(orphan).unwrap().trim().parse().unwrap();
        // The shim ends by itself after the watchdog pipe has closed.
        let attached = runtime.wait(&attached.id).await.unwrap();
        assert_eq!(attached.status, BoxStatus::Stopped, "{attached:?}");
        eventually("the descendant exits", || is_gone(orphan)).await;
        wait_until_not_running(&runtime, "starting").await;
        let detached = runtime.info("detached").await.unwrap();
        assert_eq!(detached.status, BoxStatus::Running);
        runtime.remove("detached", Removal::Force).await.unwrap();
        // It is a child of the init process, which may take its time to reap it.
        let shim = detached.pid.unwrap();
        eventually("the shim is reaped", || is_gone(shim)).await;
    });
}

async fn wait_until_not_running(runtime: &VmmRuntime, id: &str) {
    runtime.wait(id).await.unwrap();
    assert_ne!(runtime.info(id).await.unwrap().status, BoxStatus::Running);
}

#[test]
fn attached_boxes_end_when_the_process_drops_its_vmm_runtime() {
    in_two_processes(
        "attached_boxes_end_when_the_process_drops_its_vmm_runtime",
        |options| run_and_end(options, drop),
        |home, first: Output| {
            assert!(first.status.success(), "{first:?}");
            check_only_detached_runs(home);
        },
    );
}

#[test]
fn attached_boxes_end_when_the_process_calls_exit() {
    in_two_processes(
        "attached_boxes_end_when_the_process_calls_exit",
        |options| run_and_end(options, |_| std::process::exit(3)),
        |home, first| {
            assert_eq!(first.status.code(), Some(3), "{first:?}");
            check_only_detached_runs(home);
        },
    );
}

#[test]
fn attached_boxes_end_when_the_process_panics() {
    in_two_processes(
        "attached_boxes_end_when_the_process_panics",
        |options| run_and_end(options, |_| panic!("user code")),
        |home, first| {
            assert_eq!(first.status.code(), Some(101), "{first:?}");
            check_only_detached_runs(home);
        },
    );
}

#[test]
fn attached_boxes_end_when_the_process_is_killed() {
    in_two_processes(
        "attached_boxes_end_when_the_process_is_killed",
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
            check_only_detached_runs(home);
        },
    );
}

/// The child inherits the pipe of the watchdog.
#[test]
fn attached_boxes_end_although_a_forked_child_keeps_the_watchdog() {
    in_two_processes(
        "attached_boxes_end_although_a_forked_child_keeps_the_watchdog",
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
            eventually_blocking("the attached box ends", || {
                is_gone(shim) && is_gone(payload)
            });
            assert!(!is_gone(child));
            // The child also holds the lock of the home.
            kill(child, Signal::SIGKILL);
            eventually_blocking("the child exits", || is_gone(child));
            check_only_detached_runs(home);
        },
    );
}

/// Forks a child that keeps all descriptors of this process except the standard ones.
#[allow(unsafe_code)]
fn fork_without_exec() -> Pid {
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    // SAFETY: the child makes only async-signal-safe calls, signal-safety(7).
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // The parent of this process reads its output to the end.
            let _ = dup2_stdout(&null).and_then(|()| dup2_stderr(&null));
            // Ends the child if the test fails.
            nix::unistd::alarm::set(2 * DEADLINE.as_secs() as u32);
            loop {
                nix::unistd::pause();
            }
        }
    }
}

#[test]
fn attached_boxes_end_when_a_drop_calls_shutdown_sync() {
    struct ShutdownOnDrop(VmmRuntime);
    impl Drop for ShutdownOnDrop {
        fn drop(&mut self) {
            let report = self.0.shutdown_sync(Duration::from_secs(60));
            assert!(!report.stopped.is_empty());
            assert_eq!(report.left_running.len(), 1);
        }
    }
    in_two_processes(
        "attached_boxes_end_when_a_drop_calls_shutdown_sync",
        |options| run_and_end(options, |runtime| drop(ShutdownOnDrop(runtime))),
        |home, first| {
            assert!(first.status.success(), "{first:?}");
            check_only_detached_runs(home);
        },
    );
}

#[tokio::test]
async fn a_dropped_vmm_runtime_ends_and_reaps_its_attached_shims() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let attached = start_box(&runtime, with_descendant()).await;
    let detached = start_box(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    for pid in [attached.pid.unwrap(), attached.payload_pid.unwrap()] {
        eventually("the attached box ends", || is_gone(pid)).await;
    }
    assert!(!is_gone(detached.pid.unwrap()));
    // The home is free at once, and the new VMM runtime finds the detached box.
    let runtime = open_runtime(&home).await;
    wait_for_status(&runtime, &attached.id, BoxStatus::Stopped).await;
    wait_for_status(&runtime, &detached.id, BoxStatus::Running).await;
    runtime.remove(&detached.id, Removal::Force).await.unwrap();
}

/// A VMM runtime has a tokio runtime of its own, and operations continue there.
#[test]
fn a_vmm_runtime_outlives_the_tokio_runtime_of_its_caller() {
    let home = PerTestBoxHome::new();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let (runtime, bx, starting) = tokio.block_on(async {
        let runtime = open_runtime(&home).await;
        let bx = start_box(&runtime, sleeping()).await;
        let starting = sleeping().ready(Ready::Notified);
        let starting = runtime.create(starting).await.unwrap().id;
        tokio::spawn({
            let (runtime, id) = (runtime.clone(), starting.clone());
            async move { runtime.start(&id).await }
        });
        let record = box_dir(&home, &starting).join("shim.pid");
        eventually("the second shim starts", || record.exists()).await;
        (runtime, bx, starting)
    });
    drop(tokio);
    let record = box_dir(&home, &starting).join("shim.pid");
    let record = vmm_runtime::PidRecord::read(&record).unwrap().unwrap();
    let killed = block_on(start_box(&runtime, sleeping()));
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    eventually_blocking("the death is counted", || {
        let metrics = futures::executor::block_on(runtime.metrics());
        metrics.boxes_failed_total == 1
    });
    drop(runtime);
    for pid in [bx.pid.unwrap(), record.pid] {
        eventually_blocking("the shim exits", || is_gone(pid));
    }
}

/// This holds even while the VMM runtime handles the end of a run.
#[tokio::test]
async fn the_home_of_a_dropped_vmm_runtime_can_be_opened_at_once() {
    let home = PerTestBoxHome::new();
    for round in 0..30 {
        let runtime = open_runtime(&home).await;
        let bx = start_box(&runtime, sleeping()).await;
        match round % 3 {
            0 => runtime.remove(&bx.id, Removal::Force).await.unwrap(),
            1 => kill(bx.pid.unwrap(), Signal::SIGKILL),
            _ => {
                let mut shutdown = std::pin::pin!(runtime.shutdown(Duration::from_secs(60)));
                let _ = futures::poll!(shutdown.as_mut());
            }
        }
        drop(runtime);
    }
    let runtime = open_runtime(&home).await;
    for info in runtime.list().await {
        runtime.remove(&info.id, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn an_aborted_task_of_the_caller_does_not_affect_its_boxes() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let task = tokio::spawn({
        let runtime = runtime.clone();
        async move {
            start_box(&runtime, sleeping().name("kept")).await;
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
    runtime.remove("kept", Removal::Force).await.unwrap();
}
