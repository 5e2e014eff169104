//! Tests in a process of their own, because they change a process-wide property: a signal
//! disposition, a resource limit, or the subreaper flag.

use std::env;
use std::fs::File;
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

const TEST_VAR: &str = "SHIM_TEST_IN_OWN_PROCESS";

/// Runs `body` in a process of its own, which runs this test binary with the test `test` alone.
/// Fails unless that process succeeds.
///
/// Returns the output of that process, and `None` within it.
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

/// Does what [`in_own_process`] does, for a `body` that may end the process in any way.
pub fn in_own_process_unchecked(test: &str, body: impl FnOnce()) -> Option<Output> {
    if env::var(TEST_VAR).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(TEST_VAR, test)
        .output()
        .unwrap();
    let has_run = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(has_run, "test {test} not found");
    Some(output)
}

/// Runs a future on a new tokio runtime with two worker threads.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Opens files until no descriptor is left. Dropping the files frees the descriptors.
pub fn exhaust_descriptors() -> Vec<File> {
    setrlimit(Resource::RLIMIT_NOFILE, 128, 128).unwrap();
    let mut files = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
                return files;
            }
        }
    }
}

/// Makes the kernel reap the children of this process.
#[allow(unsafe_code)]
pub fn ignore_sigchld() {
    // SAFETY: SIG_IGN installs no handler function.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
