//! Timeouts of a reaper with a thread of its own do not follow the paused clock of a tokio runtime.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{DEADLINE, sleeper};
use shim_reaper::ShimReaper;

#[test]
fn timeout_passes_although_the_clock_of_the_caller_is_ahead() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let shim = reaper.spawn(sleeper()).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        let exit = runtime.block_on(async {
            tokio::time::advance(Duration::from_secs(3_600)).await;
            shim.wait_timeout(Duration::from_millis(1)).await
        });
        shim.start_kill().unwrap();
        sender.send(exit).unwrap();
    });
    let exit = receiver.recv_timeout(DEADLINE).unwrap();
    assert_eq!(exit, Ok(None));
}
