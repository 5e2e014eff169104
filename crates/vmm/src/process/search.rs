//! A search for strays among all processes of the host.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use shim_reaper::{Pidfd, Signal};
use vmm_shim::{ControlGroup, FileError, is_shortage};

use super::{Litter, caretaker, procfs};

/// How long a search may take: enough for what does not fork for ever, and for what is killed to
/// exit, unless it is stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A process that was met of each.
type Met<'a> = HashMap<&'a Litter, u32>;

/// Ends the strays, and removes the control groups. Returns what is left of which, and why.
pub(super) fn end_all(wanted: &HashSet<Litter>) -> HashMap<Litter, io::Error> {
    let deadline = Instant::now() + PATIENCE;
    let met = loop {
        let met = Search::of(wanted).and_then(|search| search.kill_all(deadline));
        match met {
            Ok(met) if met.is_empty() => break Ok(met),
            met if Instant::now() >= deadline => break met,
            Ok(_) => {}
            // Of want, which may pass.
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    };
    let what_is_left = |litter: &Litter| match &met {
        Err(error) => Some(same(error)),
        Ok(met) => match met.get(litter) {
            Some(pid) => {
                let message = format!("process {pid} survives SIGKILL, or was only one of many");
                Some(io::Error::other(message))
            }
            None => remove_group(litter).err(),
        },
    };
    wanted
        .iter()
        .filter_map(|litter| Some((litter.clone(), what_is_left(litter)?)))
        .collect()
}

/// Each is told of it.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

fn remove_group(litter: &Litter) -> io::Result<()> {
    let removed = ControlGroup::of_box(&litter.dir).and_then(|group| match group {
        Some(group) => group.remove(),
        None => Ok(()),
    });
    removed.map_err(|error| io::Error::new(error.source.kind(), error))
}

fn system(error: FileError) -> io::Error {
    error.source
}

/// What tells strays from other processes.
struct Search<'a> {
    groups: Vec<(ControlGroup, &'a Litter)>,
    sessions: HashMap<u32, &'a Litter>,
    dirs: HashMap<&'a Path, &'a Litter>,
}

impl<'a> Search<'a> {
    fn of(wanted: &'a HashSet<Litter>) -> io::Result<Self> {
        let mut groups = Vec::new();
        for litter in wanted {
            let group = ControlGroup::of_box(&litter.dir).map_err(system)?;
            groups.extend(group.map(|group| (group, litter)));
        }
        let sessions = wanted
            .iter()
            .filter_map(|litter| Some((litter.session?, litter)));
        let dirs = wanted.iter().map(|litter| (litter.dir.as_path(), litter));
        Ok(Self {
            groups,
            sessions: sessions.collect(),
            dirs: dirs.collect(),
        })
    }

    fn kill_all(&self, deadline: Instant) -> io::Result<Met<'a>> {
        let mut met = self.kill_members(deadline)?;
        let members = self.members()?;
        let mut found = Vec::new();
        for pid in procfs::pids()? {
            if self.owner(pid, &members)?.is_some() {
                found.push(pid);
            }
        }
        let found = open(found)?;
        // Once more, now that the pidfds hold on to whoever they are.
        let members = self.members()?;
        for stray in found {
            let Some(owner) = self.owner(stray.pid(), &members)? else {
                continue;
            };
            if !stray.has_exited() {
                met.insert(owner, stray.pid());
                tracing::info!(pid = stray.pid(), "ending a stray descendant of a payload");
                // It may have ended by itself.
                let _ = stray.signal(Signal::SIGKILL);
            }
            collect(&stray, deadline);
        }
        Ok(met)
    }

    /// What forks and exits without end is seldom there any more when all other processes have been
    /// looked at.
    fn kill_members(&self, deadline: Instant) -> io::Result<Met<'a>> {
        let mut met = HashMap::new();
        for (group, owner) in &self.groups {
            let pids = group.pids().map_err(system)?;
            met.extend(pids.first().map(|pid| (*owner, *pid)));
            let found = open(pids)?;
            // Once more, now that the pidfds hold on to whoever they are.
            let members = group.pids().map_err(system)?;
            group.kill();
            let killed = || found.iter().filter(|one| members.contains(&one.pid()));
            for member in killed() {
                let _ = member.signal(Signal::SIGKILL);
            }
            // Only a member whose parent has exited too can be a child of this process.
            for member in killed() {
                collect(member, deadline);
            }
        }
        Ok(met)
    }

    fn members(&self) -> io::Result<HashMap<u32, &'a Litter>> {
        let mut members = HashMap::new();
        for (group, owner) in &self.groups {
            let pids = group.pids().map_err(system)?;
            members.extend(pids.into_iter().map(|pid| (pid, *owner)));
        }
        Ok(members)
    }

    fn owner(
        &self,
        pid: u32,
        members: &HashMap<u32, &'a Litter>,
    ) -> io::Result<Option<&'a Litter>> {
        if let Some(owner) = members.get(&pid) {
            return Ok(Some(owner));
        }
        // While a session has members nobody else gets its number; if somebody has, they are
        // strangers.
        if let Some(session) = procfs::session_of(pid)?
            && let Some(owner) = self.sessions.get(&session)
            && !procfs::exists(session)
        {
            return Ok(Some(owner));
        }
        let dir = procfs::box_dir_of(pid)?;
        Ok(dir.and_then(|dir| self.dirs.get(dir.as_path()).copied()))
    }
}

/// As many of them as there are descriptors for, of which half are given back: to look once more
/// takes some. The ones that are killed make room for the rest.
fn open(pids: Vec<u32>) -> io::Result<Vec<Pidfd>> {
    let mut opened = Vec::new();
    for pid in pids {
        match Pidfd::open(pid) {
            Ok(pidfd) => opened.push(pidfd),
            Err(error) if is_shortage(&error) => match opened.is_empty() {
                true => return Err(error),
                false => {
                    opened.truncate(opened.len().div_ceil(2));
                    break;
                }
            },
            // It is gone.
            Err(_) => {}
        }
    }
    Ok(opened)
}

/// Reaps a killed process once it has exited: orphans fall to this process if it is a subreaper, or
/// pid 1.
fn collect(killed: &Pidfd, deadline: Instant) {
    while !killed.has_exited() && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
    let pid = killed.pid();
    if procfs::is_child(pid)
        && let Ok(caretaker) = caretaker()
    {
        // Registering is complete in its first poll.
        let _ = caretaker.register(pid).now_or_never();
    }
}
