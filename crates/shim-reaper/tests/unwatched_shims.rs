//! A shim with a pidfd that the epoll cannot watch, because descriptors or watches are exhausted.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::DEADLINE;
use common::own_process::{exhaust_descriptors, in_own_process};
use shim_reaper::{Command, ShimReaper};

/// Nothing drives the worker, so that no sweep finds the exit.
#[test]
fn blocking_wait_reaps_a_shim_that_has_no_watch() {
    in_own_process("blocking_wait_reaps_a_shim_that_has_no_watch", || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let mut files = exhaust_descriptors();
        let builder = ShimReaper::builder().sweep_interval(Duration::from_secs(3_600));
        let reaper = builder.start_on(runtime.handle());
        // One for the pidfd of each child, and none for the epoll.
        let mut spawn = |command: &mut Command| {
            drop(files.pop());
            reaper.spawn(command).unwrap()
        };
        let shim = spawn(Command::new("sleep").arg("1000"));
        let other = spawn(&mut Command::new("true"));
        assert_eq!(reaper.stats().without_pidfd, 0);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // Checks the other shim too, which has not exited.
            let exit = other.wait_blocking();
            shim.start_kill().unwrap();
            sender.send([exit, shim.wait_blocking()]).unwrap();
        });
        let exits = receiver.recv_timeout(DEADLINE).unwrap();
        let signals = exits.map(|exit| exit.unwrap().signal());
        assert_eq!(signals, [None, Some(9)]);
        assert_eq!(reaper.stats().reaped_total, 2);
    });
}
