//! Where the orphans of a dead shim are in the process tree.
//!
//! When a shim dies, the kernel makes its children those of its nearest ancestor that is a
//! subreaper, or else of pid 1 (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`). Its other descendants stay
//! below them. So the orphans of a child of this process are below this process, one of its
//! ancestors, or pid 1. All of them started later than the shim.

use std::collections::HashSet;
use std::io;
use std::process;

use nix::sys::prctl::get_child_subreaper;
use vmm_protocol::is_resource_exhaustion;
use vmm_protocol::procfs::{self, Stat};

use super::process_wide_reaper;

const INIT: u32 = 1;

/// Returns whether this process or one of its ancestors adopts the orphans of this shim, which may
/// be the child of another process. If so, that stays so: a shim whose parent dies is adopted by an
/// ancestor of that parent.
pub(crate) fn adopt_orphans_of(shim: u32) -> io::Result<bool> {
    let parent = Stat::of(shim)?.map(|stat| stat.parent);
    let ancestors = ancestors()?.unwrap_or_default();
    Ok(parent.is_some_and(|parent| parent == process::id() || ancestors.contains(&parent)))
}

/// The processes among which the orphans of a shim are.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The processes that may be orphans.
    pub(super) candidates: Vec<u32>,
    /// All processes below the adopters that the listing has come across, except shims.
    listed: HashSet<u32>,
    /// The running shims among them, sorted. There may be thousands.
    shims: Vec<u32>,
}

impl Listing {
    /// Lists the processes that started at `since` or later, without those below the running
    /// `shims`, which are sorted. Returns `None` if the kernel does not show them.
    ///
    /// A listing can omit a process, because the kernel omits some children of a process whose
    /// other children exit while it lists them (`proc_tid_children(5)`), and because a process
    /// moves when its parent exits. A later listing [confirms](Self::confirms) that none did.
    pub(super) fn take(since: u64, shims: &[u32]) -> io::Result<Option<Self>> {
        let Some(ancestors) = ancestors()? else {
            return Ok(None);
        };
        let mut listing = Self::default();
        // Health probes, which are children of this process. They come and go all the time.
        let probes = process_wide_reaper().map(|reaper| reaper.registered());
        if !listing.add_below(probes.unwrap_or_default(), since, shims)? {
            return Ok(None);
        }
        listing.listed.clear();
        listing.shims.clear();
        let own = is_adopter().then(process::id);
        // From the nearest: an orphan whose adopter dies moves to one that is listed later.
        for adopter in own.into_iter().chain(ancestors) {
            let Some(children) = children(adopter)? else {
                return Ok(None);
            };
            if !listing.add_below(children, since, shims)? {
                return Ok(None);
            }
        }
        listing.shims.sort_unstable();
        Ok(Some(listing))
    }

    /// Returns whether `earlier` omitted no process: all that it came across have lived on.
    pub(super) fn confirms(&self, earlier: &Self) -> bool {
        let lists_shim = |shim| self.shims.binary_search(shim).is_ok();
        earlier.listed.is_subset(&self.listed) && earlier.shims.iter().all(lists_shim)
    }

    /// Adds these processes and their descendants. Returns false if the kernel does not show them.
    fn add_below(&mut self, mut pids: Vec<u32>, since: u64, shims: &[u32]) -> io::Result<bool> {
        while let Some(pid) = pids.pop() {
            if shims.binary_search(&pid).is_ok() {
                self.shims.push(pid);
                continue;
            }
            if !self.listed.insert(pid) {
                continue;
            }
            let stat = Stat::of(pid)?;
            if stat.is_none_or(|stat| stat.start_time < since) {
                continue;
            }
            self.candidates.push(pid);
            match children(pid)? {
                Some(children) => pids.extend(children),
                None if procfs::exists(pid) => return Ok(false),
                None => {}
            }
        }
        Ok(true)
    }
}

/// Returns whether this process adopts the orphans of its children.
fn is_adopter() -> bool {
    process::id() == INIT || get_child_subreaper().unwrap_or(true)
}

/// Returns the ancestors of this process, the nearest first, and pid 1. Returns `None` if this
/// process may not see all of them.
fn ancestors() -> io::Result<Option<Vec<u32>>> {
    let mut ancestors = Vec::new();
    let mut pid = process::id();
    loop {
        let Some(stat) = Stat::of(pid)? else {
            return Ok(None);
        };
        // It has no parent, or one in an outer pid namespace.
        if stat.parent == 0 {
            break;
        }
        pid = stat.parent;
        ancestors.push(pid);
    }
    if pid != INIT {
        ancestors.push(INIT);
    }
    Ok(Some(ancestors))
}

/// Returns the children of a process, or `None` if the kernel does not show them.
fn children(pid: u32) -> io::Result<Option<Vec<u32>>> {
    match procfs::children(pid) {
        Ok(children) => Ok(Some(children)),
        Err(error) if is_resource_exhaustion(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
