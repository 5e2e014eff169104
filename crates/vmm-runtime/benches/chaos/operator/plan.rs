//! Chooses what a box is.

use std::time::Duration;

use fastrand::Rng;
use vmm_runtime::{BoxSpec, HealthCheckOptions, Ready, RestartPolicy};

use crate::payload::{Kind, Payload};

/// What is special about a box, apart from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Nothing,
    /// It is removed when it has ended.
    AutoRemove,
    Restart(RestartPolicy),
    /// It has a health check, which succeeds or fails.
    Health(bool),
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) attached: bool,
    pub(super) special: Special,
    ready: bool,
    limited: bool,
    lasts: u64,
}

impl Plan {
    pub(super) fn choose(rng: &mut Rng) -> Self {
        let special = match rng.u8(..10) {
            0 => Special::AutoRemove,
            1 => Special::Restart(RestartPolicy::Always),
            2 => Special::Restart(RestartPolicy::UnlessStopped),
            3 => Special::Restart(RestartPolicy::OnFailure {
                max: Some(rng.u32(1..4)),
            }),
            4 => Special::Health(rng.bool()),
            _ => Special::Nothing,
        };
        let mut kind = Kind::ALL[rng.usize(..Kind::ALL.len())];
        if matches!(special, Special::Restart(_)) && kind.cannot_start() {
            kind = Kind::Exit;
        }
        Self {
            kind,
            attached: rng.bool(),
            special,
            ready: kind == Kind::Early || rng.u8(..4) == 0,
            limited: rng.u8(..4) == 0,
            lasts: rng.u64(..100),
        }
    }

    /// Returns the spec. `has_groups` is whether boxes with limits have control groups.
    pub(super) fn spec(&self, name: &str, observer: &str, has_groups: bool) -> BoxSpec {
        let payload = Payload {
            kind: self.kind,
            lasts: self.lasts,
            name: name.to_owned(),
            observer: observer.to_owned(),
            hides: self.limited && has_groups,
        };
        let program = match self.kind {
            Kind::Missing => "/missing/program".to_owned(),
            _ => std::env::current_exe()
                .unwrap_or_default()
                .display()
                .to_string(),
        };
        let command = [program].into_iter().chain(payload.args());
        let mut spec = BoxSpec::new(command).name(name).detached(!self.attached);
        if self.kind == Kind::Deaf {
            spec = spec.stop_grace(Duration::from_millis(50));
        }
        if self.ready {
            spec = spec.ready(Ready::Notified);
        }
        if self.limited {
            spec = spec.cpus(1).memory_mib(128);
        }
        match self.special {
            Special::Nothing => spec,
            Special::AutoRemove => spec.auto_remove(true),
            Special::Restart(policy) => spec.restart(policy),
            Special::Health(succeeds) => {
                let probe = HealthCheckOptions::command([if succeeds { "true" } else { "false" }]);
                spec.health(probe.interval(Duration::from_millis(20)).retries(1))
            }
        }
    }
}
