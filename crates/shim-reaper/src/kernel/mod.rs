//! The kernel's process table: the interface that the sweep uses, and its implementations.

mod forked_children;
mod linux;
mod orphans;
mod process_table;
pub(crate) mod procfs;
mod reap_requests;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulated;
mod watches;

pub(crate) use forked_children::ForkedChildren;
pub(crate) use linux::Linux;
pub(crate) use process_table::{
    MAX_READY_EVENTS, Member, NoPidfd, Orphan, Orphans, ProcessTable, Spawned, Target, Until,
    WaitResult,
};
pub(crate) use procfs::{ProcStat, children_of, pid_of_pidfd};
pub(crate) use reap_requests::ReapRequests;
pub(crate) use watches::Watches;
