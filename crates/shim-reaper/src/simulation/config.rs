use std::time::Duration;

use fastrand::Rng;

use super::Options;
use crate::kernel::simulated::Features;

/// The sweep interval. Short, because the simulation runs once for every simulated millisecond.
pub(super) const INTERVAL: Duration = Duration::from_millis(8);

/// The grace period of a wait that takes two steps, and of an orphan.
pub(super) fn long_grace(grace: Duration) -> Duration {
    grace.max(INTERVAL)
}

/// What stays the same during one history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    pub(super) features: Features,
    pub(super) grace: Duration,
    /// The grace period of a stop that the embedder requests.
    pub(super) stop_grace: Duration,
    pub(super) recycling: Recycling,
    pub(super) spawning: Spawning,
    /// Whether the reaper reaps also orphans that no shim has left.
    pub(super) reaps_all_orphans: bool,
    pub(super) panics: bool,
    pub(super) exhausts_descriptors: bool,
    pub(super) disturbances: Disturbances,
    /// The number of processes that are spawned and exit together.
    pub(super) crowd: u32,
}

/// What the reaper spawns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spawning {
    /// Commands that create a child with its pidfd.
    Native,
    /// Commands of std whose child opens its pidfd before it executes the program.
    EarlyStd,
    /// Commands of std.
    Std,
}

/// How reliable the events of watches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbances {
    None,
    /// Events come twice, or although nothing has happened.
    Spurious,
    /// They also come late or never.
    Lossy,
}

/// How soon a new process may get a pid again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recycling {
    /// Between any two system calls.
    Immediate,
    /// Not while the reaper runs: without a pidfd, it cannot distinguish two processes between two of
    /// its calls.
    BetweenSteps,
    /// Not before a sweep has seen that the process is gone: without a pidfd and without procfs, the
    /// pid is all that is known of a process.
    Slow,
}

impl Config {
    /// Returns a random configuration.
    pub(super) fn random(rng: &mut Rng, options: Options) -> Self {
        // The oldest, and each that adds an interface.
        let age = rng.u32(0..6);
        let features = Features {
            pidfds: age > 0,
            wait_by_pidfd: age > 1,
            hangup: age > 2,
            exit_info: age > 3,
            events: true,
            subreaper: rng.bool(),
            reaps_children: rng.u32(0..12) == 0,
            io_uring: options.io_uring && age > 1,
            switched_off: options.switched_off,
        };
        let exhausts_descriptors = rng.u32(0..4) == 0;
        let spawning = [
            Spawning::Native,
            Spawning::Native,
            Spawning::EarlyStd,
            Spawning::Std,
        ][rng.usize(0..4)];
        let recycling = if exhausts_descriptors {
            Recycling::Slow
        } else if features.wait_by_pidfd && spawning != Spawning::Std {
            Recycling::Immediate
        } else {
            Recycling::BetweenSteps
        };
        Self {
            features,
            grace: Duration::from_millis([0, 3, 8, 24][rng.usize(0..4)]),
            stop_grace: Duration::from_millis(rng.u64(0..20)),
            recycling,
            spawning,
            reaps_all_orphans: rng.u32(0..3) == 0,
            panics: rng.u32(0..4) == 0,
            exhausts_descriptors,
            disturbances: [
                Disturbances::None,
                Disturbances::None,
                Disturbances::Spurious,
                Disturbances::Lossy,
            ][rng.usize(0..4)],
            crowd: [0, 0, 0, 0, 0, 0, 0, 0, 20, 20, 20, 300][rng.usize(0..12)],
        }
    }
}
