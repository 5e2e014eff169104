use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use crate::c_strings::CStringArray;
use crate::descriptors::Descriptors;
use crate::resource::Resource;

/// A closure of [`pre_exec`](crate::Command::pre_exec).
pub(crate) type PreExec = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// All that the child needs between its creation and `exec`. The parent has allocated it, because the
/// child cannot.
pub(crate) struct Plan<'a> {
    /// The paths at which the child looks for the program, in order.
    pub(crate) candidates: CStringArray,
    pub(crate) arguments: CStringArray,
    pub(crate) environment: CStringArray,
    pub(crate) current_dir: Option<CString>,
    pub(crate) descriptors: Descriptors<'a>,
    /// That of the attributes, under a number that no other descriptor of the child gets.
    pub(crate) landlock: Option<OwnedFd>,
    pub(crate) attributes: &'a Attributes,
    pub(crate) pre_exec: &'a mut [PreExec],
}

/// The attributes that a command sets. The child inherits the others.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) cgroups: Vec<OwnedFd>,
    pub(crate) network_namespace: Option<OwnedFd>,
    pub(crate) rlimits: Vec<Rlimit>,
    /// A bit for each CPU.
    pub(crate) affinity: Option<Vec<usize>>,
    pub(crate) nice: Option<i32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) gid: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) process_group: Option<i32>,
    pub(crate) setsid: bool,
    pub(crate) controlling_terminal: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) landlock: Option<OwnedFd>,
    pub(crate) parent_death_signal: Option<i32>,
    /// Whether the child inherits no descriptors but those that the command gives it.
    pub(crate) hide_descriptors: bool,
    pub(crate) inherit_signal_mask: bool,
    pub(crate) reset_ignored_signals: bool,
}

impl Attributes {
    /// Returns true if the child may run as another user or group.
    pub(crate) fn change_user(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Rlimit {
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}
