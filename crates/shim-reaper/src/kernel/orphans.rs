use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::unistd::{Pid, getpgid};

use super::procfs::Children;
use super::{ForkedChildren, Orphan, Orphans, ProcStat};
use crate::sys::{self, WaitFor};

/// The maximum number of running children that a sweep checks to find orphans, while a child is dead.
const MAX_RUNNING_PER_SWEEP: usize = 512;

/// The search for dead children that this process may not have forked.
#[derive(Debug, Default)]
pub(super) struct OrphanSearch {
    /// The position in the list of children at which [`next_zombies`](Self::next_zombies) goes on.
    next_child: AtomicUsize,
}

impl OrphanSearch {
    pub(super) fn find_dead(&self, among: Orphans<'_>, forked: &mut ForkedChildren) -> Vec<Orphan> {
        // While no child is dead, the children do not have to be listed.
        if matches!(among, Orphans::All) && !sys::has_zombie() {
            return Vec::new();
        }
        let Ok(children) = Children::read() else {
            return Vec::new();
        };
        let candidates = children.forked_or_reparented;
        forked.update(&candidates, &children.forked, sys::ticks_since_boot());
        let dead = match among {
            Orphans::InGroups(pgids) => {
                let is_dead_group = |pgid: &&u32| is_dead(WaitFor::Group(**pgid));
                let pgids: HashSet<u32> = pgids.iter().filter(is_dead_group).copied().collect();
                // The leader is reaped; a child that has its pid is another process.
                let in_groups = |pid: &u32| {
                    let pgid = getpgid(Some(Pid::from_raw(*pid as i32)));
                    let pgid = pgid.map(|pgid| pgid.as_raw() as u32);
                    pgid.is_ok_and(|pgid| pgid != *pid && pgids.contains(&pgid))
                };
                let candidates = candidates.into_iter().filter(|_| !pgids.is_empty());
                candidates
                    .filter(|pid| is_dead(WaitFor::Pid(*pid)) && in_groups(pid))
                    .collect()
            }
            Orphans::All => self.next_zombies(&candidates),
        };
        let orphan = |pid| {
            let start_time = ProcStat::read(pid).ok()??.start_time;
            Some(Orphan { pid, start_time }).filter(|orphan| !forked.contains(*orphan))
        };
        dead.into_iter().filter_map(orphan).collect()
    }

    /// Returns the zombies among these children, up to the [`MAX_RUNNING_PER_SWEEP`]th child that still
    /// runs. The next call goes on from there.
    fn next_zombies(&self, children: &[u32]) -> Vec<u32> {
        let first = self.next_child.load(Ordering::Relaxed) % children.len().max(1);
        let (later, next) = children.split_at(first);
        let mut zombies = Vec::new();
        let mut checked = 0;
        for pid in next.iter().chain(later) {
            if checked - zombies.len() == MAX_RUNNING_PER_SWEEP {
                break;
            }
            checked += 1;
            if is_dead(WaitFor::Pid(*pid)) {
                zombies.push(*pid);
            }
        }
        self.next_child.store(first + checked, Ordering::Relaxed);
        zombies
    }
}

fn is_dead(target: WaitFor<'_>) -> bool {
    matches!(sys::waitid(target, true), Ok(Some(_)))
}
