//! A reaper on a simulated kernel, for tests that choose the order of events themselves.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use tokio_util::sync::CancellationToken;

use crate::ReapedBy;
use crate::core::Core;
use crate::kernel::simulated::{Descriptor, Features, Simulated};
use crate::outbox::Outbox;
use crate::shared::Shared;
use crate::shim::{Role, Shim};
use crate::stats::Counters;

pub(crate) const LATEST: Features = Features::LATEST;

pub(crate) const INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn core(features: Features) -> Core<Simulated> {
    Core::new(Shared::new(
        Simulated::new(features),
        Counters::default(),
        CancellationToken::new(),
        INTERVAL,
        INTERVAL,
        true,
        None,
    ))
}

pub(crate) fn sweep(core: &Core<Simulated>) {
    let mut outbox = Outbox::new();
    block_on(async {
        core.reap_ready(&mut outbox).await;
        core.sweep(&mut outbox).await;
        core.reap_ready(&mut outbox).await;
    });
}

pub(crate) fn register(core: &Core<Simulated>, pid: u32, role: Role) -> Arc<Shim<Descriptor>> {
    core.shared.register(pid, role).unwrap()
}

/// Returns (reaped, vanished, registered).
pub(crate) fn counts(core: &Core<Simulated>) -> (u64, u64, u64) {
    let stats = core.shared.counters.snapshot(true);
    (stats.reaped_total, stats.vanished_total, stats.registered)
}

/// Returns the exit code, and whose wait reaped the process, if its exit is known.
pub(crate) fn exit_of(shim: &Shim<Descriptor>) -> Option<(Option<i32>, ReapedBy)> {
    let exit = shim.state().exit()?;
    Some((exit.code(), exit.reaped_by))
}
