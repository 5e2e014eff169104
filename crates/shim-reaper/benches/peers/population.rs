use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use crate::peer::Peer;
use crate::report::Column;
use crate::system;

/// How often to check whether a child is reaped.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// Sleeping children that a peer has to reap when they die.
pub(crate) struct Population<'a> {
    peer: &'a dyn Peer,
    pids: VecDeque<u32>,
}

impl<'a> Population<'a> {
    pub(crate) fn new(peer: &'a dyn Peer, count: usize) -> Self {
        let mut population = Self {
            peer,
            pids: VecDeque::with_capacity(count),
        };
        population.grow_to(count);
        population
    }

    pub(crate) fn column(&self) -> Column {
        self.peer.column()
    }

    /// Reserves memory for `count` pids, so that the list does not grow during a measurement.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.pids.reserve(count);
    }

    pub(crate) fn grow_to(&mut self, count: usize) {
        while self.pids.len() < count {
            self.pids.push_back(self.peer.start(None));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pids.len()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.pids.iter().copied().collect()
    }

    /// Removes the oldest child.
    pub(crate) fn take(&mut self) -> u32 {
        self.pids.pop_front().unwrap()
    }

    /// Removes the oldest of the youngest `count` children.
    pub(crate) fn take_recent(&mut self, count: usize) -> u32 {
        self.pids.remove(self.pids.len() - count).unwrap()
    }

    /// Kills all children, and returns when the last one is reaped.
    pub(crate) fn kill_all(&mut self) {
        for pid in &self.pids {
            system::kill(*pid);
        }
        for pid in self.pids.drain(..) {
            while !system::is_reaped(pid) {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

impl Drop for Population<'_> {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Sleeping children that no peer reaps.
pub(crate) struct Children {
    pub(crate) pids: Vec<u32>,
}

impl Children {
    #[allow(clippy::zombie_processes)]
    pub(crate) fn start(count: usize) -> Self {
        let start = |_| system::sleeper().spawn().unwrap().id();
        Self {
            pids: (0..count).map(start).collect(),
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for pid in &self.pids {
            system::kill(*pid);
        }
        for pid in &self.pids {
            system::wait(*pid);
        }
    }
}
