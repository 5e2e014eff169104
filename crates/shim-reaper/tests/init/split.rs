//! When a process is split, and when not.

use std::{process, thread};

use nix::sys::prctl::get_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow};
use shim_reaper::init::{Init, InitError};

#[test]
fn a_process_that_is_not_pid_1_is_not_split() {
    assert!(Init::new().run_if_pid_1().is_ok());
}

#[test]
fn a_process_with_threads_is_not_split() {
    let error = thread::spawn(|| {
        let before = SigSet::thread_get_mask().unwrap();
        let Err(error) = Init::new().run() else {
            // The exit code of the init, which this process has become.
            process::exit(1);
        };
        let mask = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        assert_eq!(mask, Ok(before));
        error
    });
    let error = error.join().unwrap();
    assert!(matches!(error, InitError::Threads(2..)), "{error}");
    assert_eq!(get_child_subreaper(), Ok(false));
}
