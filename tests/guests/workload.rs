//! Commands of boxes that run in a guest: their output, and how they end.

use std::time::Duration;

use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxSpec, BoxStatus, Ending, ExecSpec, FailureKind, VmmRuntime};
use vmm_shim::{DiskAccess, QemuOptions};

use crate::common::{eventually, is_gone, kill};
use crate::guest::{GuestFiles, console, open_runtime, spec, start_up};

fn workload<const N: usize>(guest: &QemuOptions, command: [&str; N]) -> BoxSpec {
    let mut spec = spec(guest);
    spec.payload.command = command.map(str::to_owned).into();
    spec
}

fn shell(guest: &QemuOptions, script: &str) -> BoxSpec {
    workload(guest, ["sh", "-c", script])
}

async fn run(runtime: &VmmRuntime, spec: BoxSpec) -> BoxInfo {
    let bx = runtime.create(spec).await.unwrap();
    runtime.start(&bx.id).await.unwrap();
    runtime.wait(&bx.id).await.unwrap()
}

#[tokio::test]
async fn a_box_prints_the_output_of_its_command_and_ends_with_its_code() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest_with_agent();
    guest.user = Some("www".to_owned());
    // The process that is left behind does not delay the end.
    let script = "echo $GREETING; pwd; id -u; cat; echo err >&2; sleep 1000 & exit 42";
    let spec = shell(&guest, script).env("GREETING", "hello");
    let spec = spec.working_dir("/tmp").stdin("input\n");
    let ended = run(&runtime, spec).await;
    let code = 42;
    assert_eq!(ended.ending, Some(Ending::Exited { code }), "{ended:?}");
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Failed, Some(42))
    );
    assert_eq!(console(&ended), "hello\n/tmp\n33\ninput\nerr\n");
}

#[tokio::test]
async fn a_box_whose_command_succeeds_has_stopped_and_its_data_is_on_the_disk() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest_with_agent();
    guest.cmdline += " vmm.overlay=off";
    let disk = guest.disks[0].path.clone();
    guest.disks[0].access = DiskAccess::ReadWrite;
    let ended = run(&runtime, shell(&guest, "echo text >/file")).await;
    assert_eq!(ended.ending, Some(Ending::Exited { code: 0 }), "{ended:?}");
    assert_eq!(ended.status, BoxStatus::Stopped);
    let mut debugfs = std::process::Command::new("/sbin/debugfs");
    let file = debugfs.args(["-R", "cat /file"]).arg(disk).output();
    assert_eq!(file.unwrap().stdout, b"text\n");
}

#[tokio::test]
async fn a_command_that_the_guest_cannot_run_fails_the_start() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest_with_agent();
    for (program, kind, code) in [
        ("no-such-program", FailureKind::NotFound, 127),
        ("/etc/passwd", FailureKind::NotExecutable, 126),
    ] {
        let bx = runtime.create(workload(&guest, [program])).await.unwrap();
        runtime.start(&bx.id).await.unwrap_err();
        let failed = runtime.info(&bx.id).await.unwrap();
        let Some(Ending::Failed { kind: found, .. }) = failed.ending else {
            panic!("{failed:?}");
        };
        assert_eq!((found, failed.exit_code), (kind, Some(code)));
        assert_eq!(failed.status, BoxStatus::Failed);
        let error = failed.error.unwrap();
        assert!(error.contains(program), "{error}");
    }
}

#[tokio::test]
async fn a_signal_or_a_lack_of_memory_in_the_guest_ends_the_box() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest_with_agent();
    let killed = run(&runtime, shell(&guest, "kill -KILL $$")).await;
    let signal = 9;
    assert_eq!(killed.ending, Some(Ending::Signaled { signal }));
    assert_eq!(killed.status, BoxStatus::Failed);
    // `tail` keeps a line that never ends.
    let spec = workload(&guest, ["tail", "-n", "1", "/dev/zero"]);
    let ended = run(&runtime, spec).await;
    assert_eq!(ended.ending, Some(Ending::OutOfMemory), "{ended:?}");
}

#[tokio::test]
async fn a_stop_terminates_the_command_although_a_client_does_not_read() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let script = "trap 'echo bye; exit 7' TERM; echo up; sleep 1000 & wait";
    let spec = shell(&files.guest_with_agent(), script)
        .env("GREETING", "hello")
        .stop_grace(Duration::from_secs(120));
    let bx = start_up(&runtime, spec).await;
    let command = ExecSpec::new("", ["sh", "-c", "echo $GREETING"]);
    let output = runtime.exec(&bx.id, command).await.unwrap().output().await;
    assert_eq!(output.unwrap().stdout, b"hello\n");
    // More output than the port, the shim and the client have room for.
    let endless = ExecSpec::new("", ["cat", "/dev/zero"]);
    let _unread = runtime.exec(&bx.id, endless).await.unwrap();

    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(stopped.ending, Some(Ending::Exited { code: 7 }));
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(console(&stopped), "up\nbye\n");
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_within_the_grace_period() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = shell(
        &files.guest_with_agent(),
        "trap '' TERM; echo up; while :; do sleep 0.1; done",
    )
    .stop_grace(Duration::from_secs(24));
    let bx = start_up(&runtime, spec).await;
    let stopped = runtime.stop(&bx.id).await.unwrap();
    // The agent has killed it, and has powered off.
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9))
    );
    assert!(is_gone(bx.payload_pid.unwrap()));
}

#[tokio::test]
async fn a_qemu_that_is_killed_while_its_command_runs_is_a_failure() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(
        &runtime,
        shell(&files.guest_with_agent(), "echo up; sleep 1000"),
    )
    .await;
    kill(bx.payload_pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
}

#[tokio::test]
async fn a_detached_command_ends_without_a_runtime() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = shell(
        &files.guest_with_agent(),
        "echo up; sleep 5; echo over; exit 4",
    )
    .detached(true);
    let bx = start_up(&runtime, spec).await;
    drop(runtime);
    eventually("the shim ends without a runtime", || {
        is_gone(bx.pid.unwrap())
    })
    .await;

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.ending, Some(Ending::Exited { code: 4 }), "{found:?}");
    assert_eq!(console(&found), "up\nover\n");
}

#[tokio::test]
async fn an_attached_command_is_terminated_when_its_runtime_ends() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let script = "trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait";
    let spec = shell(&files.guest_with_agent(), script).stop_grace(Duration::from_secs(120));
    let bx = start_up(&runtime, spec).await;
    drop(runtime);
    eventually("the shim has ended", || is_gone(bx.pid.unwrap())).await;
    assert_eq!(console(&bx), "up\nbye\n");
}
