use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frames::BootPhase;

/// How long a guest took to boot, in milliseconds.
///
/// ```
/// use std::time::Duration;
/// use vmm_protocol::{BootTimes, frames::BootPhase};
///
/// let phase = |name: &str, micros| BootPhase { name: name.to_owned(), micros };
/// let phases = [phase("kernel", 400_000), phase("mounts", 5_000), phase("port", 15_000)];
/// let times = BootTimes::new(Duration::from_millis(500), &phases);
/// assert_eq!((times.vmm_ms, times.kernel_ms, times.agent_ms), (80, 400, 20));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// From the spawn of the VMM until the kernel runs: the VMM itself, and the firmware.
    pub vmm_ms: u64,
    /// From then until the kernel starts its init, the agent.
    pub kernel_ms: u64,
    /// From then until the host knows that the agent is ready.
    pub agent_ms: u64,
}

/// The phase of the boot that ends when the agent starts.
const KERNEL_PHASE: &str = "kernel";

impl BootTimes {
    /// Splits the time from the spawn of the VMM until its guest was ready, by the phases that the
    /// agent has reported. The parts never exceed the whole: an agent may report anything.
    pub fn new(total: Duration, phases: &[BootPhase]) -> Self {
        let (kernel, agent): (Vec<_>, Vec<_>) =
            phases.iter().partition(|phase| phase.name == KERNEL_PHASE);
        let millis = |phases: Vec<&BootPhase>| {
            let micros = phases.iter().map(|phase| phase.micros);
            micros.fold(0, u64::saturating_add) / 1000
        };
        let total_ms = u64::try_from(total.as_millis()).unwrap_or(u64::MAX);
        let kernel_ms = millis(kernel).min(total_ms);
        let agent_ms = millis(agent).min(total_ms - kernel_ms);
        Self {
            vmm_ms: total_ms - kernel_ms - agent_ms,
            kernel_ms,
            agent_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_that_are_longer_than_the_boot_do_not_exceed_it() {
        let phase = |name: &str| BootPhase {
            name: name.to_owned(),
            micros: u64::MAX,
        };
        let times = BootTimes::new(Duration::from_millis(7), &[phase("port"), phase("kernel")]);
        let expected = BootTimes {
            vmm_ms: 0,
            kernel_ms: 7,
            agent_ms: 0,
        };
        assert_eq!(times, expected);
    }
}
