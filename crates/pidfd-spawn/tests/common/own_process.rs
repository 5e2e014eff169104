//! Tests in a process of their own, because they change a process-wide property, or count what the
//! process has.

use std::env;
use std::process::{Command, Output};

const TEST_VAR: &str = "PIDFD_SPAWN_TEST_IN_OWN_PROCESS";

/// Runs `body` in a process of its own, which runs this test binary with the test `test` alone.
/// Fails unless that process succeeds.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if let Some(output) = in_own_process_unchecked(test, body) {
        assert!(
            output.status.success(),
            "{test} in its own process: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
}

/// Does what [`in_own_process`] does, for a `body` that may end the process in any way. Returns the
/// output of that process, and `None` within it.
pub fn in_own_process_unchecked(test: &str, body: impl FnOnce()) -> Option<Output> {
    let mut command = own_process(test, body)?;
    Some(command.output().unwrap())
}

/// Returns the command of that process, and `None` within it.
pub fn own_process(test: &str, body: impl FnOnce()) -> Option<Command> {
    if env::var(TEST_VAR).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(TEST_VAR, test);
    Some(command)
}
