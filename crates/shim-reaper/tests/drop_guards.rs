//! A guard shuts the reaper down when code returns early or unwinds.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{DEADLINE, Fixture, is_gone, sleeper};
use shim_reaper::{ReaperBuilder, ReaperClosed};

in_both_modes!(
    dropping_a_guard_leaves_the_shims_running,
    dropping_a_stopping_guard_ends_every_child,
    a_guard_works_while_a_thread_unwinds,
    a_disarmed_guard_does_nothing,
);

async fn dropping_a_guard_leaves_the_shims_running(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    drop(fixture.reaper.drop_guard());
    assert!(!fixture.reaper.worker_alive());
    assert_eq!(handle.try_wait(), Err(ReaperClosed));
    assert!(handle.is_running());
    handle.start_kill().unwrap();
    nix::sys::wait::waitpid(common::as_pid(handle.id()), None).unwrap();
}

async fn dropping_a_stopping_guard_ends_every_child(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handles: Vec<_> = (0..5)
        .map(|_| fixture.reaper.spawn(sleeper()).unwrap())
        .collect();
    drop(fixture.reaper.stopping_drop_guard(DEADLINE));
    for handle in handles {
        assert_eq!(handle.try_wait().unwrap().unwrap().signal(), Some(15));
        assert!(is_gone(handle.id()));
    }
}

async fn a_guard_works_while_a_thread_unwinds(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = fixture.reaper.stopping_drop_guard(DEADLINE);
        panic!("the daemon has failed");
    }));
    assert!(panicked.is_err());
    assert_eq!(handle.try_wait().unwrap().unwrap().signal(), Some(15));
}

async fn a_disarmed_guard_does_nothing(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    fixture.reaper.stopping_drop_guard(DEADLINE).disarm();
    assert!(fixture.reaper.worker_alive());
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    assert_eq!(handle.kill().await.unwrap().signal(), Some(9));
}
