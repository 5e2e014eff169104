use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::json;
use vmm_image::GuestFiles;
use vmm_rest::wire::{BoxStatus, ExecRequest, ExecutionStatus};
use vmm_runtime::testing::PerTestBoxHome;

use crate::exec::drive_shell;
use crate::fixture::{Daemon, run_shimd, serve, shimd};
use crate::image::{build_image, find_files};
use crate::terminal::Terminal;

/// Writes the image file of a guest with the agent and busybox. Returns `None` on a host that cannot
/// run guests.
pub(crate) fn write_image(images: &Path) -> Option<()> {
    let files = find_files()?;
    let guest = build_image(&files, images);
    let image = json!({
        "engine": "qemu",
        "env": {"GREETING": "hello"},
        "options": {
            "kernel": guest.kernel(),
            "initrd": guest.initrd(),
            "cmdline": GuestFiles::KERNEL_PARAMETERS,
            "accelerator": "tcg",
            "disks": [{"path": guest.root()}],
            "agent": true,
        },
    });
    fs::write(images.join("busybox.json"), image.to_string()).unwrap();
    Some(())
}

/// Starts a daemon that has the image.
async fn start_daemon(home: &PerTestBoxHome, images: &Path) -> Daemon {
    let mut command = serve(home);
    command.arg("--images").arg(images);
    Daemon::spawn(home, command).await
}

#[tokio::test]
async fn a_shell_of_a_guest_is_used_in_a_terminal() {
    let images = tempfile::tempdir().unwrap();
    if write_image(images.path()).is_none() {
        return;
    }
    let home = PerTestBoxHome::new();
    let Some(terminal) = Terminal::open(&home, 80, 24) else {
        return;
    };
    let daemon = start_daemon(&home, images.path()).await;
    let args = [
        "run", "--detach", "--name", "nap", "--memory", "192", "busybox",
    ];
    run_shimd(&home, &args).out();
    drive_shell(&home, &daemon, &terminal).await;
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_killed_daemon_finds_its_guest_and_the_execution_in_it_again() {
    let images = tempfile::tempdir().unwrap();
    if write_image(images.path()).is_none() {
        return;
    }
    let home = PerTestBoxHome::new();
    let mut killed = start_daemon(&home, images.path()).await;
    let args = [
        "run",
        "--detach",
        "--outlive",
        "--name",
        "nap",
        "--memory",
        "192",
        "busybox",
    ];
    run_shimd(&home, &args).out();
    let before = killed.client.inspect("nap").await.unwrap();
    let request = ExecRequest::new("sh", ["-c", "read line; echo got $line; exit 5"]);
    let execution = killed.client.exec("nap", &request).await.unwrap();
    let execution = execution.execution_id;
    killed.signal(Signal::SIGKILL);
    killed.wait().await;

    let daemon = start_daemon(&home, images.path()).await;
    let found = daemon.client.inspect("nap").await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, before.pid));
    let listed = daemon.client.executions("nap").await.unwrap();
    let listed = listed
        .iter()
        .map(|it| (it.execution_id.as_str(), it.status));
    let expected = [(execution.as_str(), ExecutionStatus::Running)];
    assert!(listed.eq(expected));
    let mut attach = shimd(&home);
    attach.args(["attach", "nap"]);
    attach.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"it\n").unwrap();
    let output = attach.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(output.stdout, b"got it\n");
    run_shimd(&home, &["rm", "--force", "nap"]).out();
    daemon.shut_down().await;
}

#[tokio::test]
async fn run_prints_the_output_of_a_command_in_a_guest_and_exits_with_its_code() {
    let images = tempfile::tempdir().unwrap();
    if write_image(images.path()).is_none() {
        return;
    }
    let home = PerTestBoxHome::new();
    let daemon = start_daemon(&home, images.path()).await;
    let run = |command: &[&str]| {
        let args = [&["run", "--rm", "--memory", "192", "busybox"], command].concat();
        let output = run_shimd(&home, &args);
        (output.code, output.out)
    };
    let sh = |script| run(&["sh", "-c", script]);
    assert_eq!(run(&["echo", "hello"]), (0, "hello\n".to_owned()));
    let greeting = "hello\n".to_owned();
    assert_eq!(sh("echo $GREETING; exit 42"), (42, greeting));
    assert_eq!(sh("kill -TERM $$").0, 143);
    assert_eq!(run(&["no-such-program"]), (127, String::new()));
    daemon.shut_down().await;
}
