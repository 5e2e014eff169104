use std::time::Duration;

use super::action::{Action, ForkedBy, Interrupt, Step};
use super::config::{Config, Disturbances, Recycling, Spawning};
use super::history::History;
use super::{Mechanism, Options, simulate};
use crate::Signal;
use crate::kernel::simulated::{Failure, Features};

#[test]
fn random_histories_keep_every_promise() {
    for io_uring in [false, true] {
        let options = Options {
            io_uring,
            ..Options::default()
        };
        if let Err(violation) = simulate(1, 20_000, options, |_| {}) {
            let seed = violation.seed;
            panic!("seed {seed}: {}", violation.minimal_history());
        }
    }
}

#[test]
fn a_mechanism_that_does_not_work_is_noticed() {
    for mechanism in Mechanism::ALL {
        let options = Options {
            io_uring: mechanism.needs_io_uring(),
            switched_off: Some(mechanism),
        };
        let result = simulate(1, 100_000, options, |_| {});
        assert!(result.is_err(), "without {mechanism:?}");
    }
}

#[test]
fn seed_always_gives_the_same_history() {
    for seed in 0..50 {
        let options = Options {
            io_uring: seed % 2 == 0,
            ..Options::default()
        };
        let history = History::random(seed, options);
        let again = History::random(seed, options);
        assert_eq!(history.to_string(), again.to_string());
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
    let history = [advance, Action::UnregisterEpoll, advance].map(Step::new);
    assert_eq!(History::of(LOSSY, history.into()).violation, None);
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
    let history = history.into_iter().map(Step::new).collect();
    assert_eq!(History::of(LOSSY, history).violation, None);
}

#[test]
fn signal_without_a_pidfd_does_not_reach_a_process_that_gets_the_pid_meanwhile() {
    let (name, pid) = (1, 5_000_000);
    for call in 1..=4 {
        let fork = Action::Fork {
            name: 2,
            pid,
            parent: ForkedBy::Owner,
        };
        let recycle = [Action::Wait { name }, fork];
        let recycle = recycle.map(|action| (call, Interrupt::Step(Step::new(action))));
        let signal = Signal::SIGKILL;
        let history = vec![
            Step::new(Action::FailNext(Failure::Watch)),
            Step::new(Action::Spawn {
                name,
                pid,
                leads_group: false,
            }),
            Step::new(Action::Exit { name, code: 1 }),
            Step {
                action: Action::Signal { name, signal },
                interrupts: recycle.into(),
            },
        ];
        let history = History::of(LOSSY, history);
        assert_eq!(history.violation, None, "{history}");
    }
}
