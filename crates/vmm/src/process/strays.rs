use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use shim_reaper::{Pidfd, Signal};

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
/// Who has left both the session and the environment is not found; that takes a cgroup.
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
        for _ in 0..ROUNDS {
            if kill_all(&wanted) == 0 {
                return;
            }
        }
        tracing::warn!(
            ?wanted,
            "descendants of payloads multiply faster than they are killed"
        );
    }

    fn wanted(&self) -> MutexGuard<'_, HashSet<Litter>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kill_all(wanted: &HashSet<Litter>) -> usize {
    let dirs: HashSet<_> = wanted.iter().map(|litter| &litter.dir).collect();
    // While a session has members nobody else gets its number; if somebody has, they are strangers.
    let sessions: HashSet<_> = wanted
        .iter()
        .filter_map(|litter| litter.session)
        .filter(|session| !procfs::exists(*session))
        .collect();
    let is_wanted = |pid: u32| {
        procfs::session_of(pid).is_some_and(|session| sessions.contains(&session))
            || procfs::box_dir_of(pid).is_some_and(|dir| dirs.contains(&dir))
    };
    let strays: Vec<_> = procfs::pids()
        .filter(|pid| is_wanted(*pid))
        .filter_map(|pid| Pidfd::open(pid).ok())
        // Once more, now that the pidfd holds on to whoever it is.
        .filter(|stray| is_wanted(stray.pid()))
        .collect();
    let mut killed = 0;
    let deadline = Instant::now() + PATIENCE;
    for stray in strays {
        if !stray.has_exited() {
            tracing::info!(pid = stray.pid(), "ending a stray descendant of a payload");
            // It may have ended by itself.
            let _ = stray.signal(Signal::SIGKILL);
            while !stray.has_exited() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            killed += usize::from(stray.has_exited());
        }
        // Orphans fall to this process if it is a subreaper, or pid 1.
        if procfs::is_child(stray.pid())
            && let Ok(caretaker) = caretaker()
        {
            // Registering is complete in its first poll.
            let _ = caretaker.register(stray.pid()).now_or_never();
        }
    }
    killed
}
