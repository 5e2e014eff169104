use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use shim_reaper::{Pidfd, Signal};
use vmm_shim::ControlGroup;

use super::{caretaker, procfs};

/// Whose strays: what the payload of a box, or its health check, has left behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Litter {
    /// The box's directory, which is in the environment of what descends from its payload.
    pub(crate) dir: PathBuf,
    /// The session of its shim, if that has just ended: for those who have emptied or overwritten
    /// their environment. Later the number may be another's.
    pub(crate) session: Option<u32>,
}

/// Ends what payloads have left behind: descendants that outlived a shim which had no time to see
/// to them. A payload dies with its shim, what it has started does not.
///
/// A control group knows them all. Of a payload without one, who has left both the session and the
/// environment is not found.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    /// What is still to be searched for.
    wanted: Mutex<HashSet<Litter>>,
    /// One search at a time, for all who want one: it looks at every process of the host.
    search: Mutex<()>,
}

/// Enough for what does not fork for ever.
const ROUNDS: u32 = 100;
/// How long killed ones may take to exit.
const PATIENCE: Duration = Duration::from_secs(2);

impl Strays {
    /// Blocks until they have ended.
    pub(crate) fn end(&self, litter: Litter) {
        self.wanted().insert(litter);
        let _searching = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        // Empty if somebody else's search was for this one, too.
        let wanted = std::mem::take(&mut *self.wanted());
        if wanted.is_empty() {
            return;
        }
        let is_any_left = |_| {
            let killed = kill_all(&wanted);
            killed > 0 || groups_of(&wanted).any(|group| !group.pids().is_empty())
        };
        if (0..ROUNDS).all(is_any_left) {
            tracing::warn!(
                ?wanted,
                "not all that payloads have started could be killed"
            );
        }
        groups_of(&wanted).for_each(|group| group.remove());
    }

    fn wanted(&self) -> MutexGuard<'_, HashSet<Litter>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn groups_of(wanted: &HashSet<Litter>) -> impl Iterator<Item = ControlGroup> {
    wanted
        .iter()
        .filter_map(|litter| ControlGroup::of_box(&litter.dir))
}

/// What tells strays from other processes, at one moment.
struct Traits<'a> {
    members: HashSet<u32>,
    sessions: HashSet<u32>,
    dirs: HashSet<&'a PathBuf>,
}

impl<'a> Traits<'a> {
    fn of(wanted: &'a HashSet<Litter>) -> Self {
        let sessions = wanted.iter().filter_map(|litter| litter.session);
        Self {
            members: groups_of(wanted).flat_map(|group| group.pids()).collect(),
            // While a session has members nobody else gets its number; if somebody has, they are
            // strangers.
            sessions: sessions
                .filter(|session| !procfs::exists(*session))
                .collect(),
            dirs: wanted.iter().map(|litter| &litter.dir).collect(),
        }
    }

    fn has(&self, pid: u32) -> bool {
        self.members.contains(&pid)
            || procfs::session_of(pid).is_some_and(|session| self.sessions.contains(&session))
            || procfs::box_dir_of(pid).is_some_and(|dir| self.dirs.contains(&dir))
    }
}

/// What forks and exits without end is seldom there any more when all other processes have been
/// looked at.
fn kill_members(wanted: &HashSet<Litter>) {
    for group in groups_of(wanted) {
        let pidfds = group.pids().into_iter().map(Pidfd::open);
        let found: Vec<_> = pidfds.filter_map(Result::ok).collect();
        // Once more, now that the pidfds hold on to whoever they are.
        let members = group.pids();
        group.kill();
        for member in found.iter().filter(|one| members.contains(&one.pid())) {
            let _ = member.signal(Signal::SIGKILL);
            collect(member.pid());
        }
    }
}

/// Orphans fall to this process if it is a subreaper, or pid 1.
fn collect(pid: u32) {
    if procfs::is_child(pid)
        && let Ok(caretaker) = caretaker()
    {
        // Registering is complete in its first poll.
        let _ = caretaker.register(pid).now_or_never();
    }
}

fn kill_all(wanted: &HashSet<Litter>) -> usize {
    kill_members(wanted);
    let traits = Traits::of(wanted);
    let found: Vec<_> = procfs::pids()
        .filter(|pid| traits.has(*pid))
        .filter_map(|pid| Pidfd::open(pid).ok())
        .collect();
    // Once more, now that the pidfds hold on to whoever they are.
    let traits = Traits::of(wanted);
    let mut killed = 0;
    let deadline = Instant::now() + PATIENCE;
    for stray in found.into_iter().filter(|stray| traits.has(stray.pid())) {
        if !stray.has_exited() {
            tracing::info!(pid = stray.pid(), "ending a stray descendant of a payload");
            // It may have ended by itself.
            let _ = stray.signal(Signal::SIGKILL);
            while !stray.has_exited() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            killed += usize::from(stray.has_exited());
        }
        collect(stray.pid());
    }
    killed
}
