//! When the program has done enough.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The number of lives, or the time, after which the operators end.
#[derive(Debug)]
pub(crate) struct Goal {
    target: Target,
    began: Instant,
    lives: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Lives(usize),
    Time(Duration),
}

impl Goal {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            began: Instant::now(),
            lives: AtomicUsize::new(0),
        }
    }

    /// Counts a box that was created, started and removed.
    pub(crate) fn count_life(&self) {
        self.lives.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lives(&self) -> usize {
        self.lives.load(Ordering::Relaxed)
    }

    pub(crate) fn lives_per_second(&self) -> f64 {
        self.lives() as f64 / self.began.elapsed().as_secs_f64()
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.progress() >= 1.0
    }

    /// Returns whether only the last tenth is left.
    pub(crate) fn is_near(&self) -> bool {
        self.progress() >= 0.9
    }

    fn progress(&self) -> f64 {
        match self.target {
            Target::Lives(target) => self.lives() as f64 / target as f64,
            Target::Time(time) => self.began.elapsed().as_secs_f64() / time.as_secs_f64(),
        }
    }
}
