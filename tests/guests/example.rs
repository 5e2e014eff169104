//! The example `guest`.

use std::process::Command;

use crate::guest::GuestFiles;

#[test]
fn the_example_runs_a_command_in_a_guest_and_exits_with_its_code() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let guest = files.guest_with_agent();
    // cargo builds examples before tests, into the directory above that of the tests.
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/guest");
    let script = "cat /proc/1/comm; exit 3";
    let mut command = Command::new(&example);
    command.args([&guest.kernel, guest.initrd.as_ref().unwrap()]);
    command.arg(&guest.disks[0].path).args(["sh", "-c", script]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert_eq!(output.stdout, b"init\n");
    assert!(errors.contains("the guest booted in"), "{errors}");
    assert!(errors.contains("PoweredOff"), "{errors}");

    let usage = Command::new(&example).arg("/nonexistent").output().unwrap();
    let errors = String::from_utf8_lossy(&usage.stderr);
    assert_eq!(usage.status.code(), Some(64), "{errors}");
    assert!(
        errors.starts_with("/nonexistent does not exist\nusage: "),
        "{errors}"
    );
}
