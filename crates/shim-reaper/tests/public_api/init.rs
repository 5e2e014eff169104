//! The init.

use std::io;
use std::time::Duration;

use shim_reaper::init::{Init, InitError};

fn inits_run() -> Result<(), InitError> {
    let init: Init = Init::new()
        .forward_to_group(true)
        .stop_remaining(Duration::ZERO);
    init.run_if_pid_1()?;
    init.run()
}

fn inits_fail_for_a_reason(error: InitError) -> Result<usize, io::Error> {
    match error {
        InitError::Threads(count) => Ok(count),
        InitError::CountThreads(source)
        | InitError::Subreaper(source)
        | InitError::Fork(source)
        | InitError::ProcessGroup(source) => Err(source),
        _ => unreachable!("the list has all variants"),
    }
}
