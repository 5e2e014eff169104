use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use shim_reaper::{Pidfd, ShimReaper, Signal};

use super::procfs;

/// Ends what payloads have left behind: descendants that outlived a shim which had no time to see
/// to them. A payload dies with its shim, what it has started does not.
#[derive(Debug)]
pub(crate) struct Strays {
    reaper: ShimReaper,
    /// Directories of boxes whose strays are still to be found.
    wanted: Mutex<HashSet<PathBuf>>,
    /// One search at a time, for all who want one: it looks at every process of the host.
    search: Mutex<()>,
}

/// Enough for what does not fork for ever.
const ROUNDS: u32 = 100;
/// How long killed ones may take to exit.
const PATIENCE: Duration = Duration::from_secs(2);

impl Strays {
    /// Strays that fall to this process, because it is a subreaper or pid 1, go to `reaper`.
    pub(crate) fn new(reaper: ShimReaper) -> Self {
        Self {
            reaper,
            wanted: Mutex::default(),
            search: Mutex::default(),
        }
    }

    /// Those of the box in this directory. Blocks until they have ended.
    pub(crate) fn end(&self, dir: PathBuf) {
        self.wanted().insert(dir);
        let _searching = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        // Empty if somebody else's search was for this one, too.
        let dirs = std::mem::take(&mut *self.wanted());
        if dirs.is_empty() {
            return;
        }
        for _ in 0..ROUNDS {
            if self.kill_all(&dirs) == 0 {
                return;
            }
        }
        tracing::warn!(
            ?dirs,
            "the descendants of payloads multiply faster than they are killed"
        );
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill_all(&self, dirs: &HashSet<PathBuf>) -> usize {
        let is_wanted = |pid: u32| procfs::box_dir_of(pid).is_some_and(|dir| dirs.contains(&dir));
        let strays: Vec<_> = procfs::pids()
            .filter(|pid| is_wanted(*pid))
            .filter_map(|pid| Pidfd::open(pid).ok())
            // Once more, now that the pidfd holds on to whoever it is.
            .filter(|stray| is_wanted(stray.pid()))
            .collect();
        for stray in &strays {
            tracing::info!(pid = stray.pid(), "ending a stray descendant of a payload");
            // It may have ended by itself.
            let _ = stray.signal(Signal::SIGKILL);
        }
        let deadline = Instant::now() + PATIENCE;
        for stray in &strays {
            while !stray.has_exited() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            if procfs::is_child(stray.pid()) {
                // Registering is complete in its first poll.
                let _ = self.reaper.register(stray.pid()).now_or_never();
            }
        }
        strays.iter().filter(|stray| stray.has_exited()).count()
    }
}
