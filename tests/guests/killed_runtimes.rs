//! The process of a VMM runtime is killed while its guests are in every state, and the next runtime
//! recovers the boxes.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxInfo, BoxSpec, BoxStatus, Ending, ExecSpec, Removal, RuntimeOptions, VmmRuntime,
};

use crate::common::boxes::{HOME_VAR, in_two_processes, wait_for_info};
use crate::common::own_process::block_on;
use crate::common::{eventually, is_gone, is_zombie, kill};
use crate::guest::{BOOT_TIMEOUT, GuestFiles, console, open_runtime, spec, with_engine};
use crate::kills::child_of;

/// Creates boxes with guests in every state. Then the process kills itself.
async fn run_and_die(options: RuntimeOptions) {
    let home = std::env::var_os(HOME_VAR).unwrap();
    let find = || GuestFiles::find_in(Path::new(&home)).unwrap();
    let (silent_files, agent_files) = (find(), find());
    let silent = silent_files.guest("sleep 1000");
    let mut never_ready = silent.clone();
    never_ready.agent = true;
    let with_agent = agent_files.guest_with_agent();
    let attached = |guest| spec(guest).stop_grace(Duration::from_secs(1));
    let detached = |guest| spec(guest).detached(true);
    let shell = |script: &str| {
        let mut spec = detached(&with_agent);
        spec.payload.command = ["sh", "-c", script].map(str::to_owned).into();
        spec
    };

    let runtime = VmmRuntime::open(with_engine(options)).await.unwrap();
    let create = async |name: &str, spec: BoxSpec| runtime.create(spec.name(name)).await.unwrap();
    create("created", shell("exit 42")).await;
    for (name, spec) in [
        ("starting", attached(&never_ready)),
        ("starting-detached", detached(&never_ready)),
    ] {
        create(name, spec).await;
        let runtime = runtime.clone();
        tokio::spawn(async move { runtime.start(name).await });
    }
    let ignores_stop = "trap 'echo stopping' TERM; echo up; while :; do sleep 0.1; done";
    let start = async |(name, spec)| {
        create(name, spec).await;
        runtime.start(name).await.unwrap()
    };
    let started = join_all(
        [
            ("running", attached(&silent)),
            ("paused", attached(&silent)),
            ("stopping", attached(&silent)),
            ("paused-detached", detached(&silent)),
            ("executing-detached", detached(&with_agent)),
            ("stopping-detached", shell(ignores_stop)),
        ]
        .map(start),
    )
    .await;
    for name in ["starting", "starting-detached"] {
        let bx = wait_for_info(&runtime, name, |bx| bx.pid.is_some()).await;
        child_of(bx.pid.unwrap(), "qemu").await;
    }
    let mut reader = ExecSpec::new("reader", ["sh", "-c", "read line; echo got $line"]);
    reader.stdin = true;
    let _execution = runtime.exec("executing-detached", reader).await.unwrap();
    for name in ["paused", "paused-detached"] {
        runtime.pause(name).await.unwrap();
    }
    // The agent kills the workload after a half of it, and can report that for a quarter, also on a loaded machine.
    for (name, grace) in [("stopping", 3600), ("stopping-detached", 60)] {
        let (runtime, grace) = (runtime.clone(), Duration::from_secs(grace));
        tokio::spawn(async move { runtime.stop_within(name, grace).await });
    }
    let stopping = started.last().unwrap();
    eventually("the guest stops", || console(stopping).contains("stopping")).await;
    wait_for_info(&runtime, "stopping", |bx| bx.stopping).await;
    kill(std::process::id(), Signal::SIGKILL);
}

/// Waits until the box has ended, and checks that its processes have.
async fn wait_for_end(runtime: &VmmRuntime, name: &str) -> BoxInfo {
    let pids = runtime.info(name).await.unwrap();
    let ended = timeout(BOOT_TIMEOUT, runtime.wait(name)).await;
    let ended = ended
        .unwrap_or_else(|_| panic!("{name} does not end"))
        .unwrap();
    for pid in [pids.pid, pids.payload_pid].into_iter().flatten() {
        // Its parent is the init of the host, which may take its time.
        assert!(is_gone(pid) || is_zombie(pid), "{name}: {ended:?}");
    }
    ended
}

async fn check_boxes(home: &PerTestBoxHome) {
    let runtime = open_runtime(home).await;
    let status = async |name: &str| runtime.info(name).await.unwrap().status;

    assert_eq!(status("executing-detached").await, BoxStatus::Running);
    let mut execution = runtime
        .attach("executing-detached", "reader")
        .await
        .unwrap();
    let mut stdin = execution.stdin.take().unwrap();
    stdin.write_all(b"a line\n").await.unwrap();
    drop(stdin);
    assert_eq!(execution.output().await.unwrap().stdout, b"got a line\n");

    assert_eq!(status("paused-detached").await, BoxStatus::Paused);
    let resumed = runtime.resume("paused-detached").await.unwrap();
    assert_eq!(resumed.status, BoxStatus::Running);

    for name in ["starting", "running", "paused", "stopping"] {
        let ended = wait_for_end(&runtime, name).await;
        assert_eq!(ended.status, BoxStatus::Stopped, "{name}: {ended:?}");
    }
    let stopped = wait_for_end(&runtime, "stopping-detached").await;
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9)),
        "{stopped:?}"
    );
    let failed = wait_for_end(&runtime, "starting-detached").await;
    assert_eq!(failed.status, BoxStatus::Failed);
    let error = failed.error.unwrap();
    assert!(error.contains("the runtime exited before"), "{error}");

    assert_eq!(status("created").await, BoxStatus::Configured);
    runtime.start("created").await.unwrap();
    let ended = wait_for_end(&runtime, "created").await;
    assert_eq!(ended.ending, Some(Ending::Exited { code: 42 }), "{ended:?}");
    for bx in runtime.list().await {
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
    }
}

#[test]
fn a_killed_runtime_ends_its_attached_guests_and_its_detached_guests_are_recovered_in_every_state()
{
    if GuestFiles::find().is_none() {
        return;
    }
    in_two_processes(
        "killed_runtimes::a_killed_runtime_ends_its_attached_guests_and_its_detached_guests_are_recovered_in_every_state",
        |options| block_on(run_and_die(options)),
        |home, first| {
            assert!(first.status.code().is_none(), "{first:?}");
            block_on(check_boxes(home));
        },
    );
}
