//! What happens at a system call of a check.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;
use crate::kernel::simulated::Interrupts;

/// Makes the next wait panic.
#[derive(Debug, Default)]
struct PanicAtWait(AtomicBool);

impl Interrupts for PanicAtWait {
    fn before(&self, call: &'static str) {
        assert!(call != "waitid" || !self.0.swap(false, Relaxed));
    }
}

/// Completes the wait for process 7 while the reaper sleeps.
#[derive(Debug)]
struct CompleteWait(Arc<Core<Simulated>>);

impl Interrupts for CompleteWait {
    fn before(&self, call: &'static str) {
        if call == "sleep" {
            self.0.shared.kernel.set(7, ProcessState::Reaped(3));
        }
    }
}

#[test]
fn final_drain_awaits_the_status_of_a_foreign_wait_in_progress() {
    for role in [Role::Owned, Role::Attached] {
        let core = Arc::new(core(LATEST));
        let interrupts = Arc::new(CompleteWait(Arc::clone(&core)));
        let weak: Weak<CompleteWait> = Arc::downgrade(&interrupts);
        core.shared.kernel.set_interrupts(weak);
        core.shared.kernel.fork(7);
        let shim = register(&core, 7, role);
        core.shared.kernel.set(7, ProcessState::BeingReaped(3));
        core.close_blocking();
        assert_eq!(exit_of(&shim).map(|(code, _)| code), Some(Some(3)));
    }
}

#[test]
fn final_drain_does_not_await_a_foreign_wait_for_ever() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::BeingReaped(3));
    core.close_blocking();
    assert_eq!(exit_of(&shim), Some((None, ReapedBy::ForeignWait)));
}

#[test]
fn spot_check_waits_for_no_shim_while_none_has_exited() {
    let core = core(LATEST);
    let panics = Arc::new(PanicAtWait::default());
    let interrupts: Weak<PanicAtWait> = Arc::downgrade(&panics);
    core.shared.kernel.set_interrupts(interrupts);
    for pid in [7, 8] {
        core.shared.kernel.fork(pid);
        register(&core, pid, Role::Owned);
    }
    sweep(&core);
    panics.0.store(true, Relaxed);
    sweep(&core);
    assert!(panics.0.load(Relaxed), "a wait would have panicked");
}

#[test]
fn check_at_the_end_of_a_grace_period_is_repeated_an_interval_after_a_panic() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    let panics = Arc::new(PanicAtWait::default());
    let interrupts: Weak<PanicAtWait> = Arc::downgrade(&panics);
    kernel.set_interrupts(interrupts);
    kernel.fork(7);
    register(&core, 7, Role::Shared);
    kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    kernel.pass_time(INTERVAL);
    panics.0.store(true, Relaxed);
    let check = || core.try_reap_ready(&mut Outbox::new());
    assert!(panic::catch_unwind(AssertUnwindSafe(check)).is_err());
    let (_, retry_at) = check().unwrap();
    assert_eq!(retry_at, Some(kernel.now() + INTERVAL));
    assert!(kernel.reaped_by_reaper().is_empty());
    kernel.pass_time(INTERVAL);
    check();
    assert_eq!(kernel.reaped_by_reaper(), [7]);
}
