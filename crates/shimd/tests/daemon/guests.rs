use std::fs;
use std::path::Path;

use serde_json::json;
use vmm_image::GuestFiles;
use vmm_runtime::testing::PerTestBoxHome;

use crate::exec::drive_shell;
use crate::fixture::{Daemon, run_shimd, serve};
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
