use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::round::Round;

/// The results of all rounds.
#[derive(Default)]
pub(crate) struct Tally {
    lifecycles: AtomicU64,
    losses: [AtomicU64; 5],
    events: [AtomicU64; 4],
}

/// What went wrong outside of the reaper, or in its worker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    ForeignWait,
    WorkerRestart,
    RecycledPid,
    Orphan,
}

/// The columns of the table that must stay zero.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// A handle or a stream did not report an exit.
    Lost,
    /// An owner's wait found that its child had been reaped.
    Stolen,
    /// A handle or a stream reported a wrong status, or the same exit twice.
    Wrong,
    /// No wait reaped the child.
    Zombie,
    /// The child did not exit, and the round did not know of it.
    Running,
}

impl Tally {
    pub(crate) fn add_lifecycles(&self, count: usize) {
        self.lifecycles.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn lifecycles(&self) -> u64 {
        self.lifecycles.load(Relaxed)
    }

    pub(crate) fn count(&self, loss: Loss, count: u64, round: &Round, what: &str) {
        if count > 0 && self.losses[loss as usize].fetch_add(count, Relaxed) < 20 {
            eprintln!(
                "{loss:?}: {count} {what}, in round {}: {round:?}",
                round.number
            );
        }
    }

    pub(crate) fn add_events(&self, event: Event, count: u64) {
        self.events[event as usize].fetch_add(count, Relaxed);
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.losses.iter().all(|loss| loss.load(Relaxed) == 0)
    }

    pub(crate) fn table(&self) -> String {
        let [lost, stolen, wrong, zombies, running] =
            self.losses.each_ref().map(|loss| loss.load(Relaxed));
        let [foreign, restarts, recycled, orphans] =
            self.events.each_ref().map(|event| event.load(Relaxed));
        let lifecycles = self.lifecycles();
        format!(
            "| lifecycles | exits lost | stolen | wrong | zombies left | left running |\n\
             |---|---|---|---|---|---|\n\
             | {lifecycles} | {lost} | {stolen} | {wrong} | {zombies} | {running} |\n\
             with {foreign} foreign waits, {restarts} worker restarts, {recycled} recycled pids, \
             {orphans} orphans"
        )
    }
}
