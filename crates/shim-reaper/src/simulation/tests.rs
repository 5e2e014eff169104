use std::time::Duration;

use super::action::{Action, ForkedBy};
use super::config::{Config, Disturbances, Recycling, Spawning};
use super::history::History;
use super::simulate;
use crate::kernel::simulated::Features;

#[test]
fn random_histories_keep_every_promise() {
    if let Err(violation) = simulate(1, 20_000, |_| {}) {
        panic!("seed {}: {}", violation.seed, violation.history);
    }
}

#[test]
fn seed_always_gives_the_same_history() {
    for seed in 0..50 {
        let history = History::random(seed);
        assert_eq!(history.to_string(), History::random(seed).to_string());
        assert_eq!(history.to_string(), history.replay().to_string());
    }
}

const LOSSY: Config = Config {
    features: Features::LATEST,
    grace: Duration::ZERO,
    stop_grace: Duration::ZERO,
    recycling: Recycling::Immediate,
    spawning: Spawning::Native,
    reaps_all_orphans: false,
    panics: false,
    exhausts_descriptors: false,
    disturbances: Disturbances::Lossy,
    crowd: 0,
};

#[test]
fn worker_registers_its_epoll_again_after_a_forked_child_has_removed_it() {
    let advance = Action::Advance { millis: 200 };
    let history = [advance, Action::UnregisterEpoll, advance];
    assert_eq!(History::of(LOSSY, &history).violation, None);
}

#[test]
fn worker_registers_its_epoll_again_although_registrations_wake_it() {
    let register = |pid| {
        let name = pid;
        let parent = ForkedBy::Owner;
        [
            Action::Fork { name, pid, parent },
            Action::Register { name },
            // Wakes the worker, which has to check it.
            Action::Adopt {
                name,
                has_pidfd: false,
            },
            Action::Advance { millis: 12 },
        ]
    };
    let mut history = vec![Action::Advance { millis: 1 }, Action::UnregisterEpoll];
    history.extend((5_000_000..5_000_010).flat_map(register));
    assert_eq!(History::of(LOSSY, &history).violation, None);
}
