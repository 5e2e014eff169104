//! Which runtimes a reaper can live on, and what becomes of it on those it cannot.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Fixture, exits_with};
use shim_reaper::{MetricsSink, ShimReaper};
use tokio::runtime::Builder;

#[test]
fn a_reaper_runs_on_the_runtime_that_it_is_given() {
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for pidfd in [true, false] {
        // This thread is in no runtime.
        let sink = MetricsSink::default();
        let builder = ShimReaper::builder().pidfd(pidfd);
        let reaper = builder.metrics_sink(sink.clone()).start_on(home.handle());
        let child = exits_with(4).spawn().unwrap();
        let handle = reaper.register_child(child).unwrap();
        let exit = futures::executor::block_on(handle).unwrap();
        assert_eq!(exit.code(), Some(4));
        let fixture = Fixture { reaper, sink };
        home.block_on(fixture.expect(1, 0, 0));
        assert!(fixture.reaper.worker_alive());
    }
}

#[test]
fn a_runtime_without_drivers_is_refused_at_the_start() {
    let without_io = Builder::new_current_thread().enable_time().build().unwrap();
    let without_time = Builder::new_current_thread().enable_io().build().unwrap();
    for runtime in [without_io, without_time] {
        let start = || ShimReaper::builder().start_on(runtime.handle());
        assert!(catch_unwind(AssertUnwindSafe(start)).is_err());
    }
}
