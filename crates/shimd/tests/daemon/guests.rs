use std::fs;
use std::path::Path;

use serde_json::json;
use vmm_image::GuestFiles;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, run_shimd, serve};
use crate::image::{build_image, find_files};

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

#[tokio::test]
async fn run_prints_the_output_of_a_command_in_a_guest_and_exits_with_its_code() {
    let images = tempfile::tempdir().unwrap();
    if write_image(images.path()).is_none() {
        return;
    }
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
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
