//! The search for orphans: in the control groups, below the processes that adopt them, and where
//! neither is enough, among all processes of the host.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use shim_reaper::{Pidfd, ShimReaper, Signal};
use vmm_protocol::procfs::{self, Stat};
use vmm_protocol::{ControlGroup, FileError, Members, is_resource_exhaustion};

use super::adopters::Listing;
use super::{CleanupTarget, membership, process_wide_reaper};

/// The number of pidfds open at once, so that a payload with many processes cannot use up the
/// descriptors of the runtime.
const MAX_OPEN_PIDFDS: usize = 256;

/// The number of killed processes to wait for per target. The next search finds the rest.
const MAX_AWAITED: usize = 16;

/// The number of listings after which a search reads all processes: too many exit at the same time.
const MAX_LISTINGS: usize = 8;

/// The result of a search for one target.
#[derive(Debug, Default)]
pub(super) struct SearchResult {
    /// Some of the killed processes, which may take time to exit. Empty if no process was found.
    pub(super) awaited: Vec<Pidfd>,
    /// All killed processes.
    pub(super) killed: Vec<KilledProcess>,
    pub(super) group: Option<ControlGroup>,
    /// Whether the group contains more groups than one search visits. The next search finds fewer.
    pub(super) is_partial: bool,
    /// The error of searching the group of this target. It does not affect other targets.
    pub(super) failure: Option<io::Error>,
}

/// A killed process, by what identifies its zombie.
#[derive(Clone, Copy, Debug)]
pub(super) struct KilledProcess {
    pid: u32,
    start_time: u64,
}

impl SearchResult {
    /// Adds a killed process to the result.
    fn add(&mut self, killed: Pidfd) -> io::Result<()> {
        let pid = killed.pid();
        let stat = Stat::of(pid)?;
        // If it was reaped, the pid may belong to another process.
        if let Some(stat) = stat.filter(|_| !killed.is_reaped()) {
            let start_time = stat.start_time;
            self.killed.push(KilledProcess { pid, start_time });
        }
        if self.awaited.len() < MAX_AWAITED {
            self.awaited.push(killed);
        }
        Ok(())
    }
}

/// Finishes a cleanup after a search that found no running process. Reaps the killed processes that
/// became children of this process, which is known only after their parents have exited, and
/// removes the control group.
pub(super) fn finish(dead: &[KilledProcess], group: Option<ControlGroup>) -> io::Result<()> {
    for killed in dead {
        if Stat::of(killed.pid)?.is_some_and(|stat| stat.start_time == killed.start_time) {
            reap_if_child(killed.pid);
        }
    }
    let removed = group.map_or(Ok(()), |group| group.remove());
    removed.map_err(|error| io::Error::new(error.source.kind(), error))
}

/// Kills the orphans of all targets once, without waiting for their exit. `reaper` is that of the
/// running shims.
pub(super) fn kill_all(
    wanted: &HashSet<CleanupTarget>,
    reaper: &ShimReaper,
) -> io::Result<HashMap<CleanupTarget, SearchResult>> {
    let mut search = Search::of(wanted)?;
    search.kill_members();
    // `None` if any target has none.
    let since = wanted.iter().map(|target| target.since).min().flatten();
    let is_complete = match since {
        Some(since) => search.kill_adopted(since, &reaper.registered())?,
        None => false,
    };
    if !is_complete {
        search.kill_among(procfs::pids()?)?;
    }
    let found = search.found.into_iter();
    Ok(found
        .map(|(target, found)| (target.clone(), found))
        .collect())
}

/// The criteria that identify orphans, and the results per target.
struct Search<'a> {
    groups: Vec<(ControlGroup, &'a CleanupTarget)>,
    /// The targets by the paths of their groups as `/proc` shows them.
    targets_by_group: HashMap<PathBuf, &'a CleanupTarget>,
    sessions: HashMap<u32, &'a CleanupTarget>,
    dirs: HashMap<&'a Path, &'a CleanupTarget>,
    found: HashMap<&'a CleanupTarget, SearchResult>,
    /// The processes that this search has killed, which may take time to exit.
    killed: HashSet<u32>,
}

impl<'a> Search<'a> {
    /// Prepares a search for the orphans of these targets.
    fn of(wanted: &'a HashSet<CleanupTarget>) -> io::Result<Self> {
        let dirs: HashMap<_, _> = wanted
            .iter()
            .map(|target| (target.dir.as_path(), target))
            .collect();
        let groups = groups_of(wanted, &dirs).map_err(|error| error.source)?;
        let sessions = wanted
            .iter()
            .filter_map(|target| Some((target.session?, target)));
        let mut found: HashMap<_, _> = wanted
            .iter()
            .map(|target| (target, SearchResult::default()))
            .collect();
        for (group, target) in &groups {
            found.entry(*target).or_default().group = Some(group.clone());
        }
        let group_targets = groups.iter().map(|(group, target)| (group, *target));
        let targets_by_group =
            ControlGroup::by_proc_path(group_targets).map_err(|error| error.source)?;
        Ok(Self {
            targets_by_group,
            sessions: sessions.collect(),
            groups,
            dirs,
            found,
            killed: HashSet::new(),
        })
    }

    /// Kills the orphans below the processes that adopt them. The cost does not depend on the number
    /// of processes on the host. Returns false if the kernel does not show all of these processes.
    fn kill_adopted(&mut self, since: u64, shims: &[u32]) -> io::Result<bool> {
        let mut earlier = None;
        for _ in 0..MAX_LISTINGS {
            // A target for which a process was killed is searched for again.
            if self.found.values().all(|found| !found.awaited.is_empty()) {
                return Ok(true);
            }
            let Some(listing) = Listing::take(since, shims)? else {
                return Ok(false);
            };
            self.kill_among(listing.candidates.iter().copied())?;
            if earlier.is_some_and(|earlier| listing.confirms(&earlier)) {
                return Ok(true);
            }
            earlier = Some(listing);
        }
        Ok(false)
    }

    /// Kills the orphans among these processes.
    fn kill_among(&mut self, pids: impl Iterator<Item = u32>) -> io::Result<()> {
        let mut orphans = Vec::new();
        for pid in pids {
            let is_killed = self.killed.contains(&pid);
            if !is_killed && self.target_of(pid)?.is_some() {
                orphans.push(pid);
            }
        }
        for orphans in orphans.chunks(MAX_OPEN_PIDFDS) {
            let opened = open_pidfds(orphans)?;
            // Checked again, because the pidfds now pin the processes.
            for orphan in opened {
                let Some(target) = self.target_of(orphan.pid())? else {
                    continue;
                };
                reap_if_child(orphan.pid());
                if !orphan.has_exited() {
                    tracing::info!(pid = orphan.pid(), "killing an orphan of a payload");
                    // It may have exited since.
                    let _ = orphan.send_signal(Signal::SIGKILL);
                    self.killed.insert(orphan.pid());
                    self.found.entry(target).or_default().add(orphan)?;
                }
            }
        }
        Ok(())
    }

    /// Kills the members of the control groups. First, because a process that forks and exits in a
    /// loop is gone before a scan of all processes reaches it. Also removes the empty groups among
    /// those that payloads have created within theirs.
    fn kill_members(&mut self) {
        for (group, target) in &self.groups {
            let found = self.found.entry(*target).or_default();
            group.kill();
            match group.sweep(|members| kill_in(members, found)) {
                Ok(is_complete) => found.is_partial = !is_complete,
                Err(error) => found.failure = Some(error.source),
            }
        }
    }

    /// Returns the target that the process is an orphan of.
    fn target_of(&self, pid: u32) -> io::Result<Option<&'a CleanupTarget>> {
        // The cost does not depend on how many groups a payload has created.
        for group in procfs::control_groups(pid)? {
            let mut paths = group.ancestors();
            if let Some(target) = paths.find_map(|path| self.targets_by_group.get(path)) {
                return Ok(Some(target));
            }
        }
        // The number of a session cannot be reused while it has members. If a process has that
        // number as its pid, the session is a new one.
        if let Some(stat) = Stat::of(pid)?
            && let Some(target) = self.sessions.get(&stat.session)
            && !procfs::exists(stat.session)
        {
            return Ok(Some(target));
        }
        let dir = membership::box_dir_of(pid)?;
        Ok(dir.and_then(|dir| self.dirs.get(dir.as_path()).copied()))
    }
}

/// Returns the control groups of the targets. Lists all groups of boxes only if the shim of a target
/// is not known.
fn groups_of<'a>(
    wanted: &'a HashSet<CleanupTarget>,
    dirs: &HashMap<&'a Path, &'a CleanupTarget>,
) -> Result<Vec<(ControlGroup, &'a CleanupTarget)>, FileError> {
    let mut groups = Vec::new();
    for target in wanted {
        if let Some(shim) = target.session {
            let group = ControlGroup::of_shim(&target.dir, shim)?;
            groups.extend(group.map(|group| (group, target)));
        }
    }
    let others = wanted.iter().filter(|target| target.session.is_none());
    let others: Vec<_> = others.map(|target| target.dir.as_path()).collect();
    if !others.is_empty() {
        let by_dir = ControlGroup::of_boxes(others)?.into_iter();
        groups.extend(by_dir.filter_map(|(dir, group)| Some((group, *dirs.get(dir)?))));
    }
    Ok(groups)
}

/// Kills the members of one control group, and adds them to `found`.
fn kill_in(group: Members<'_>, found: &mut SearchResult) -> io::Result<()> {
    for pids in group.pids()?.chunks(MAX_OPEN_PIDFDS) {
        let opened = open_pidfds(pids)?;
        // Checked again, because the pidfds now pin the processes.
        let members: HashSet<_> = group.pids()?.into_iter().collect();
        for member in opened {
            if members.contains(&member.pid()) {
                let _ = member.send_signal(Signal::SIGKILL);
                reap_if_child(member.pid());
                found.add(member)?;
            }
        }
    }
    Ok(())
}

/// Opens pidfds for as many processes as there are descriptors, and then closes half of them,
/// because the second check needs some. Killed processes make room for the rest.
fn open_pidfds(pids: &[u32]) -> io::Result<Vec<Pidfd>> {
    let mut opened = Vec::new();
    for pid in pids {
        match Pidfd::open(*pid) {
            Ok(pidfd) => opened.push(pidfd),
            Err(error) if is_resource_exhaustion(&error) => {
                if opened.is_empty() {
                    return Err(error);
                }
                opened.truncate(opened.len().div_ceil(2));
                break;
            }
            // It has exited.
            Err(_) => {}
        }
    }
    Ok(opened)
}

/// Registers the process with the process-wide reaper if it is a child of this process: orphans are
/// reparented here if this process is a subreaper or pid 1.
fn reap_if_child(pid: u32) {
    if procfs::is_child(pid)
        && let Ok(reaper) = process_wide_reaper()
    {
        // Fails only after a shutdown of that reaper.
        drop(reaper.register(pid));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use vmm_protocol::Controller;

    use super::*;

    /// Mounts an empty file system on `dir`, in a new mount namespace of the calling thread.
    fn mount_over(dir: &Path) -> nix::Result<()> {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none)?;
        mount(none, dir, Some("tmpfs"), MsFlags::empty(), none)
    }

    #[test]
    fn an_unreadable_group_does_not_fail_the_search_for_other_targets() {
        let search = || {
            let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let targets = homes.each_ref().map(|home| CleanupTarget {
                dir: home.path().to_owned(),
                session: None,
                since: None,
            });
            let [unreadable, group] = targets.each_ref().map(|target| {
                let created = ControlGroup::create(&target.dir, &[(Controller::Pids, 10)]);
                created.map(|(group, _)| group).unwrap()
            });
            let dirs = unreadable.clone().into_dirs();
            let prepared = dirs.first().ok_or(nix::Error::ENOENT).and_then(|dir| {
                let inner = dir.join("inner");
                fs::create_dir(&inner).unwrap();
                mount_over(&inner)?;
                // Reading a directory fails, with another error than for a removed group.
                fs::create_dir(inner.join(vmm_protocol::PROCS_FILE)).unwrap();
                Ok(inner)
            });
            let reaper = process_wide_reaper().unwrap();
            let found = kill_all(&targets.iter().cloned().collect(), &reaper).unwrap();
            if let Ok(inner) = &prepared {
                nix::mount::umount(inner).unwrap();
                fs::remove_dir(inner).unwrap();
            }
            unreadable.remove().unwrap();
            group.remove().unwrap();
            if let Err(error) = prepared {
                eprintln!("SKIPPED: {error}");
                return;
            }
            let has_failed = targets.map(|target| found[&target].failure.is_some());
            assert_eq!(has_failed, [true, false]);
        };
        // The mount namespace ends with the thread.
        thread::spawn(search).join().unwrap();
    }
}
