//! Compares what the reaper reported with what the children did.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use futures::executor::block_on_stream;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{Exits, MetricsSink, ShimExit};

use crate::census;
use crate::child::{Fate, Registered};
use crate::population::Population;
use crate::round::Round;
use crate::tally::{Loss, Tally};

impl Round {
    pub(crate) fn check(
        &self,
        population: &Population,
        (concurrent, unread): (Reader, Exits),
        running: &HashSet<u32>,
        sink: &MetricsSink,
        tally: &Tally,
    ) {
        let registered = std::mem::take(&mut *population.registered());
        tally.add_lifecycles(registered.len());
        let (stopped, ended): (Vec<_>, Vec<_>) = registered
            .iter()
            .partition(|shim| running.contains(&shim.pid));
        if !self.ending.is_while_busy() {
            tally.count(
                Loss::Lost,
                stopped.len() as u64,
                self,
                "still registered at the end",
            );
        }
        if self.ending.stops() {
            let running = stopped.iter().filter(|shim| !shim.attached).count();
            tally.count(Loss::Lost, running as u64, self, "not stopped");
        }
        self.check_handles(&ended, tally);
        let unresolved = population.unresolved();
        tally.count(Loss::Lost, unresolved, self, "by a handle of a traced shim");
        let reaped = self.check_stream(&ended, concurrent, "a stream read during the round", tally);
        if !self.rules.owners_wait {
            // Only the registry may reap a registered child, even one that looks like an orphan.
            let stolen = reaped.saturating_sub(sink.reaped_total.load(Relaxed));
            tally.count(Loss::Stolen, stolen, self, "from the registry");
        }
        self.check_stream(
            &ended,
            Reader::start(unread),
            "a stream read after the round",
            tally,
        );
        self.reap_stopped(&stopped, tally);
        // A stop signals the process groups of the shims, which have members with other owners.
        let may_be_stopped = self.ending.stops();
        let owners = population.take_owners().into_iter();
        let got_status = owners.map(|owner| owner.got_true_status(may_be_stopped));
        let stolen = got_status.filter(|got| !got).count() as u64;
        tally.count(Loss::Stolen, stolen, self, "from their owners");
        census::wait_until(|| census::children().is_empty());
        let remaining = census::kill_remaining();
        tally.count(Loss::Zombie, remaining.zombies, self, "after the round");
        tally.count(Loss::Running, remaining.running, self, "after the round");
    }

    fn check_handles(&self, ended: &[&Registered], tally: &Tally) {
        for shim in ended {
            let Some(handle) = &shim.handle else { continue };
            census::wait_until(|| !handle.is_running());
            match handle.try_wait() {
                Ok(None) | Err(_) => tally.count(Loss::Lost, 1, self, "by a handle"),
                Ok(Some(exit)) if self.is_true(shim, &exit) => {}
                Ok(Some(_)) => tally.count(Loss::Wrong, 1, self, &format!("by a handle: {shim:?}")),
            }
        }
    }

    /// Returns the number of exits with resource usage: no other wait has reaped those children.
    fn check_stream(
        &self,
        ended: &[&Registered],
        reader: Reader,
        which: &str,
        tally: &Tally,
    ) -> u64 {
        let (read, has_ended) = reader.finish();
        let with_usage = read.iter().filter(|exit| exit.rusage.is_some()).count();
        tally.count(Loss::Lost, (!has_ended).into(), self, "end of a stream");
        let mut by_pid: HashMap<u32, Vec<ShimExit>> = HashMap::new();
        for exit in read {
            by_pid.entry(exit.pid).or_default().push(exit);
        }
        for shim in ended {
            let exits = by_pid.entry(shim.pid).or_default();
            match exits.iter().position(|exit| self.is_true(shim, exit)) {
                Some(position) => drop(exits.remove(position)),
                None if exits.is_empty() => {
                    tally.count(Loss::Lost, 1, self, &format!("by {which}: {shim:?}"));
                }
                None => {
                    let what = format!("by {which}: {exits:?} of {shim:?}");
                    tally.count(Loss::Wrong, 1, self, &what);
                }
            }
        }
        let rest = by_pid.values().map(Vec::len).sum::<usize>();
        tally.count(Loss::Wrong, rest as u64, self, "twice, or never registered");
        with_usage as u64
    }

    fn is_true(&self, shim: &Registered, exit: &ShimExit) -> bool {
        let is_stopped = self.ending.stops() && matches!(exit.signal(), Some(9 | 15));
        shim.matches(exit) || (is_stopped && exit.pid == shim.pid)
    }

    /// Waits for the children that were still running at the shutdown. Their statuses must be left to
    /// the embedder.
    fn reap_stopped(&self, stopped: &[&Registered], tally: &Tally) {
        for shim in stopped.iter().filter(|shim| !shim.attached) {
            let pid = Pid::from_raw(shim.pid as i32);
            if shim.fate == Fate::Killed {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let stolen = waitpid(pid, None) == Err(Errno::ECHILD);
            tally.count(Loss::Stolen, stolen.into(), self, "after the shutdown");
        }
    }
}

/// A thread that reads a stream of exits to its end.
pub(crate) struct Reader {
    read: Arc<Mutex<Vec<ShimExit>>>,
    ended: mpsc::Receiver<()>,
}

impl Reader {
    pub(crate) fn start(exits: Exits) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let into = Arc::clone(&read);
        thread::spawn(move || {
            block_on_stream(exits).for_each(|exit| into.lock().unwrap().push(exit));
            let _ = end.send(());
        });
        Self { read, ended }
    }

    /// Returns the exits that were read, and whether the stream has ended.
    pub(crate) fn finish(self) -> (Vec<ShimExit>, bool) {
        let ended = self.ended.recv_timeout(census::TIMEOUT).is_ok();
        (std::mem::take(&mut self.read.lock().unwrap()), ended)
    }
}
