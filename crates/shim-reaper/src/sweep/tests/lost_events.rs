//! Exits that no watch reports.

use super::super::SPOT_CHECKS_PER_SWEEP;
use super::*;

/// Registers this many children, and returns a reaper that gets no events.
fn core_without_events(children: u32) -> (Core<Simulated>, Vec<Arc<Shim<Descriptor>>>) {
    let core = core(Features {
        events: false,
        ..LATEST
    });
    let register = |pid| {
        core.shared.kernel.fork(pid);
        register(&core, pid, Role::Owned)
    };
    let shims = (1_001..=1_000 + children).map(register).collect();
    sweep(&core);
    (core, shims)
}

#[test]
fn one_lost_event_makes_a_sweep_check_all_shims() {
    let (core, shims) = core_without_events(1_000);
    let (kernel, per_sweep) = (&core.shared.kernel, SPOT_CHECKS_PER_SWEEP);
    for shim in &shims[3 * per_sweep - 1..] {
        kernel.set(shim.pid, ProcessState::Zombie(1));
    }
    // The first one checked the first shims.
    sweep(&core);
    assert!(kernel.reaped_by_reaper().is_empty());
    sweep(&core);
    assert_eq!(
        kernel.reaped_by_reaper().len(),
        shims.len() + 1 - 3 * per_sweep
    );
}

#[test]
fn exit_without_an_event_is_found_when_each_shim_has_had_its_turn() {
    let (core, shims) = core_without_events(100);
    let last = shims.last().unwrap();
    core.shared.kernel.set(last.pid, ProcessState::Zombie(1));
    for _ in 0..shims.len() / SPOT_CHECKS_PER_SWEEP + 1 {
        sweep(&core);
    }
    assert_eq!(core.shared.kernel.reaped_by_reaper(), [last.pid]);
}
