//! The tokio runtimes that a reaper can run on.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Fixture, exits_with};
use shim_reaper::ShimReaper;
use tokio::runtime::Builder;

#[test]
fn start_on_runs_the_reaper_on_the_given_tokio_runtime() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for pidfd in [true, false] {
        // This thread is not inside a tokio runtime.
        let builder = ShimReaper::builder().pidfd(pidfd);
        let fixture = Fixture::start(builder, |builder| builder.start_on(runtime.handle()));
        let child = exits_with(4).spawn().unwrap();
        let handle = fixture.reaper.register_child(child).unwrap();
        let exit = futures::executor::block_on(handle).unwrap();
        assert_eq!(exit.code(), Some(4));
        runtime.block_on(fixture.expect(1, 0, 0));
        assert!(fixture.reaper.worker_alive());
    }
}

#[test]
fn start_on_panics_for_a_tokio_runtime_without_drivers() {
    let without_io = Builder::new_current_thread().enable_time().build().unwrap();
    let without_time = Builder::new_current_thread().enable_io().build().unwrap();
    for runtime in [without_io, without_time] {
        let start = || ShimReaper::builder().start_on(runtime.handle());
        assert!(catch_unwind(AssertUnwindSafe(start)).is_err());
    }
}
