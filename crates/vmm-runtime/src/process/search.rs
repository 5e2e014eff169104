//! A search for strays among all processes of the host.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use futures::FutureExt;
use shim_reaper::{Pidfd, Signal};
use vmm_protocol::{ControlGroup, is_resource_exhaustion};

use super::{Litter, caretaker, procfs};

/// How many pidfds are open at once, so that a payload with many processes does not use up the
/// descriptors of this one.
const OPEN_AT_ONCE: usize = 256;

/// How many killed processes of each litter are awaited. The next search finds the rest.
const AWAITED: usize = 16;

/// What a search has found of one litter.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Some of those that were killed and may take time to exit; empty if none was found.
    pub(super) awaited: Vec<Pidfd>,
    /// All that were killed.
    pub(super) killed: Vec<Killed>,
    pub(super) group: Option<ControlGroup>,
}

/// A process that was killed, by what its zombie is known by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Killed {
    pid: u32,
    start_time: u64,
}

impl Found {
    fn add(&mut self, killed: Pidfd) -> io::Result<()> {
        let pid = killed.pid();
        let start_time = procfs::start_time_of(pid)?;
        // Reaped meanwhile, and the number may be another's.
        if let Some(start_time) = start_time.filter(|_| !killed.is_reaped()) {
            self.killed.push(Killed { pid, start_time });
        }
        if self.awaited.len() < AWAITED {
            self.awaited.push(killed);
        }
        Ok(())
    }
}

/// Does what remains when a search has found nothing that runs: has the zombies reaped that have
/// fallen to this process, which is only known once their parents have exited, too, and removes the
/// control groups.
pub(super) fn finish(dead: &[Killed], group: Option<ControlGroup>) -> io::Result<()> {
    for killed in dead {
        if procfs::start_time_of(killed.pid)? == Some(killed.start_time) {
            collect(killed.pid);
        }
    }
    let removed = group.map_or(Ok(()), |group| group.remove());
    removed.map_err(|error| io::Error::new(error.source.kind(), error))
}

/// Kills the strays once, without waiting until they have exited.
pub(super) fn kill_all(wanted: &HashSet<Litter>) -> io::Result<HashMap<Litter, Found>> {
    let mut search = Search::of(wanted)?;
    search.kill_members()?;
    search.kill_rest()?;
    let found = search.found.into_iter();
    Ok(found
        .map(|(litter, found)| (litter.clone(), found))
        .collect())
}

/// What tells strays from other processes, and what was found of each litter.
struct Search<'a> {
    groups: Vec<(ControlGroup, &'a Litter)>,
    sessions: HashMap<u32, &'a Litter>,
    dirs: HashMap<&'a Path, &'a Litter>,
    found: HashMap<&'a Litter, Found>,
}

impl<'a> Search<'a> {
    fn of(wanted: &'a HashSet<Litter>) -> io::Result<Self> {
        let dirs: HashMap<_, _> = wanted
            .iter()
            .map(|litter| (litter.dir.as_path(), litter))
            .collect();
        let by_dir = ControlGroup::of_boxes(dirs.keys().copied()).map_err(|error| error.source)?;
        let groups: Vec<_> = by_dir
            .into_iter()
            .filter_map(|(dir, group)| Some((group, *dirs.get(dir)?)))
            .collect();
        let sessions = wanted
            .iter()
            .filter_map(|litter| Some((litter.session?, litter)));
        let mut found: HashMap<_, _> = wanted
            .iter()
            .map(|litter| (litter, Found::default()))
            .collect();
        for (group, litter) in &groups {
            found.entry(*litter).or_default().group = Some(group.clone());
        }
        Ok(Self {
            sessions: sessions.collect(),
            groups,
            dirs,
            found,
        })
    }

    fn kill_rest(&mut self) -> io::Result<()> {
        let members = self.members()?;
        let mut strays = Vec::new();
        for pid in procfs::pids()? {
            if self.owner(pid, &members)?.is_some() {
                strays.push(pid);
            }
        }
        for strays in strays.chunks(OPEN_AT_ONCE) {
            let opened = open(strays)?;
            // Once more, now that the pidfds hold on to whoever they are.
            let members = self.members()?;
            for stray in opened {
                let Some(owner) = self.owner(stray.pid(), &members)? else {
                    continue;
                };
                collect(stray.pid());
                if !stray.has_exited() {
                    tracing::info!(pid = stray.pid(), "ending a stray descendant of a payload");
                    // It may have ended by itself.
                    let _ = stray.signal(Signal::SIGKILL);
                    self.found.entry(owner).or_default().add(stray)?;
                }
            }
        }
        Ok(())
    }

    /// What forks and exits without end is seldom there any more when all other processes have been
    /// looked at.
    fn kill_members(&mut self) -> io::Result<()> {
        for (group, owner) in &self.groups {
            let found = self.found.entry(*owner).or_default();
            group.kill();
            for pids in pids_of(group)?.chunks(OPEN_AT_ONCE) {
                let opened = open(pids)?;
                // Once more, now that the pidfds hold on to whoever they are.
                let members = pids_of(group)?;
                for member in opened {
                    if members.binary_search(&member.pid()).is_ok() {
                        let _ = member.signal(Signal::SIGKILL);
                        collect(member.pid());
                        found.add(member)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn members(&self) -> io::Result<HashMap<u32, &'a Litter>> {
        let mut members = HashMap::new();
        for (group, owner) in &self.groups {
            members.extend(pids_of(group)?.into_iter().map(|pid| (pid, *owner)));
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

/// In order.
fn pids_of(group: &ControlGroup) -> io::Result<Vec<u32>> {
    group.pids().map_err(|error| error.source)
}

/// As many of them as there are descriptors for, of which half are given back: to look once more
/// takes some. The ones that are killed make room for the rest.
fn open(pids: &[u32]) -> io::Result<Vec<Pidfd>> {
    let mut opened = Vec::new();
    for pid in pids {
        match Pidfd::open(*pid) {
            Ok(pidfd) => opened.push(pidfd),
            Err(error) if is_resource_exhaustion(&error) => match opened.is_empty() {
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

/// Orphans fall to this process if it is a subreaper, or pid 1.
fn collect(pid: u32) {
    if procfs::is_child(pid)
        && let Ok(caretaker) = caretaker()
    {
        // Registering is complete in its first poll.
        let _ = caretaker.register(pid).now_or_never();
    }
}
