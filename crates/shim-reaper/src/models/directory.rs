//! The directory: registering against sweeping and shutting down.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::executor::block_on;
use futures::task::noop_waker_ref;
use loom::model;
use loom::thread;
use tokio_util::sync::CancellationToken;

use super::poll_next;
use crate::core::Core;
use crate::kernel::simulated::{Features, ProcessState, Simulated};
use crate::outbox::Outbox;
use crate::shared::Shared;
use crate::shim::Role;
use crate::stats::Counters;
use crate::{Exits, RegisterErrorKind, ShutdownReport};

const INTERVAL: Duration = Duration::from_millis(250);

type SimulatedCore = Core<Simulated>;

fn new_core() -> Arc<SimulatedCore> {
    let core = Core::new(Shared::new(
        Simulated::new(Features::LATEST),
        Counters::default(),
        CancellationToken::new(),
        INTERVAL,
        Duration::ZERO,
        true,
        None,
    ));
    core.shared.kernel.fork(7);
    Arc::new(core)
}

/// Processes what is ready, unless another thread is doing that.
fn try_reap_ready(core: &SimulatedCore) {
    core.try_reap_ready(&mut Outbox::new());
}

fn close(core: &SimulatedCore) -> ShutdownReport {
    // Loom sees this but not the token, so it also begins the shutdown later.
    core.shared.kernel.pending_events();
    loop {
        if let Some(report) = core.try_close() {
            return report;
        }
        thread::yield_now();
    }
}

fn registered(core: &SimulatedCore) -> u64 {
    core.shared.counters.snapshot(true).registered
}

fn read_all(exits: &mut Exits) -> Vec<Option<i32>> {
    std::iter::from_fn(|| match poll_next(exits, noop_waker_ref()) {
        Poll::Ready(exit) => exit.map(|exit| exit.code()),
        Poll::Pending => None,
    })
    .collect()
}

#[test]
fn registration_during_a_shutdown_is_refused_or_reported() {
    model(|| {
        let core = new_core();
        // The final drain checks it after it has taken the pending shims. Loom lets the
        // registration come in between.
        core.shared.kernel.fork(8);
        core.shared.register(8, Role::Owned).unwrap();
        core.shared.kernel.set(8, ProcessState::Traced(3));
        try_reap_ready(&core);
        let thread = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.shared.register(7, Role::Owned))
        };
        let report = close(&core);
        match thread.join().unwrap() {
            Ok(shim) => {
                assert_eq!(report.still_running, [7]);
                assert!(!shim.state().is_running(), "its handles wait for ever");
            }
            Err(error) => {
                assert!(matches!(error.kind(), RegisterErrorKind::Closed));
                assert!(report.still_running.is_empty());
            }
        }
        assert_eq!(registered(&core), 0);
        assert!(core.shared.directory.pids().is_empty());
    });
}

#[test]
fn exit_during_its_registration_is_reported_once() {
    model(|| {
        let core = new_core();
        let mut exits = core.shared.subscribers.subscribe();
        let registering = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.shared.register(7, Role::Owned).unwrap())
        };
        let exiting = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.shared.kernel.set(7, ProcessState::Zombie(3)))
        };
        try_reap_ready(&core);
        exiting.join().unwrap();
        let shim = registering.join().unwrap();
        try_reap_ready(&core);
        assert_eq!(shim.state().exit().and_then(|exit| exit.code()), Some(3));
        assert_eq!(read_all(&mut exits), [Some(3)]);
        assert_eq!(registered(&core), 0);
    });
}

#[test]
fn two_registrations_of_a_process_share_one_shim() {
    model(|| {
        let core = new_core();
        let thread = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.shared.register(7, Role::Shared).unwrap())
        };
        let owned = core.shared.register(7, Role::Owned).unwrap();
        let shared = thread.join().unwrap();
        assert!(Arc::ptr_eq(&owned, &shared));
        assert!(owned.state().role == Role::Owned);
        assert_eq!(registered(&core), 1);
    });
}

#[test]
fn registration_of_a_recycled_pid_gets_a_shim_of_its_own() {
    model(|| {
        let core = new_core();
        let old = core.shared.register(7, Role::Owned).unwrap();
        core.shared.kernel.set(7, ProcessState::Zombie(3));
        let thread = {
            let core = Arc::clone(&core);
            thread::spawn(move || {
                // The kernel recycles a pid only after the process was reaped.
                (!core.shared.kernel.reaped_by_reaper().is_empty()).then(|| {
                    core.shared.kernel.fork(7);
                    core.shared.register(7, Role::Shared).unwrap()
                })
            })
        };
        try_reap_ready(&core);
        let new = thread.join().unwrap();
        assert_eq!(old.state().exit().and_then(|exit| exit.code()), Some(3));
        if let Some(new) = new {
            assert!(!Arc::ptr_eq(&old, &new));
            assert!(new.state().is_running());
            assert_eq!(core.shared.directory.pids(), [7]);
            assert_eq!(registered(&core), 1);
        }
    });
}

#[test]
fn exit_during_a_shutdown_is_drained_or_still_running() {
    model(|| {
        let core = new_core();
        let shim = core.shared.register(7, Role::Owned).unwrap();
        let mut exits = core.shared.subscribers.subscribe();
        let exiting = {
            let core = Arc::clone(&core);
            thread::spawn(move || {
                core.shared.kernel.set(7, ProcessState::Zombie(3));
                try_reap_ready(&core);
            })
        };
        let report = close(&core);
        exiting.join().unwrap();
        let exit = shim.state().exit();
        let read = read_all(&mut exits);
        if report.still_running.is_empty() {
            assert_eq!(exit.and_then(|exit| exit.code()), Some(3));
            assert_eq!(read, [Some(3)]);
        } else {
            assert_eq!((exit, report.drained), (None, 0));
            assert_eq!(read, []);
            assert!(core.shared.kernel.reaped_by_reaper().is_empty());
        }
        assert_eq!(poll_next(&mut exits, noop_waker_ref()), Poll::Ready(None));
        assert_eq!(block_on(core.close()), report);
    });
}
