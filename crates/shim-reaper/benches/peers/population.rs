use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use crate::peer::Peer;
use crate::system;

/// How often to look whether a child has been collected.
const LOOK: Duration = Duration::from_micros(100);

/// Sleeping children that a peer is to collect when they die.
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

    /// Makes room for as many, so that their list does not grow afterwards.
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

    /// Takes out the one that has lived longest.
    pub(crate) fn take(&mut self) -> u32 {
        self.pids.pop_front().unwrap()
    }

    /// Takes out the oldest of the last `among` that were started.
    pub(crate) fn take_recent(&mut self, among: usize) -> u32 {
        self.pids.remove(self.pids.len() - among).unwrap()
    }

    /// Kills all, and returns when the last of them has been collected.
    pub(crate) fn kill_all(&mut self) {
        for pid in &self.pids {
            system::kill(*pid);
        }
        for pid in self.pids.drain(..) {
            while !system::is_collected(pid) {
                thread::sleep(LOOK);
            }
        }
    }
}

impl Drop for Population<'_> {
    fn drop(&mut self) {
        self.kill_all();
    }
}
