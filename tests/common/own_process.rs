//! For tests that change what belongs to a whole process: a signal disposition, a limit, who its
//! orphans go to.

use std::env;
use std::fs::File;
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

const NAME: &str = "SHIM_TEST_IN_OWN_PROCESS";

/// Runs `body` in a process of its own: the test binary once more, with this test alone. Returns
/// what it printed; fails unless it succeeds.
pub fn in_own_process(test: &str, body: impl FnOnce()) -> Option<Output> {
    let output = in_own_process_unchecked(test, body)?;
    assert!(
        output.status.success(),
        "{test} in its own process: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Some(output)
}

/// [`in_own_process`], for a body that may end the process in any way. `None` within it.
pub fn in_own_process_unchecked(test: &str, body: impl FnOnce()) -> Option<Output> {
    if env::var(NAME).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(NAME, test)
        .output()
        .unwrap();
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(ran, "there is no test named {test}");
    Some(output)
}

/// A runtime for a body.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Until what this returns is dropped.
pub fn use_up_descriptors() -> Vec<File> {
    setrlimit(Resource::RLIMIT_NOFILE, 128, 128).unwrap();
    let mut hoard = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => hoard.push(file),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
                return hoard;
            }
        }
    }
}
