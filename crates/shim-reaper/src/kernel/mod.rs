//! The kernel's process table, as the sweep sees it.

mod linux;
mod process_table;
mod procfs;
#[cfg(test)]
pub(crate) mod simulated;

pub(crate) use linux::Linux;
pub(crate) use process_table::{
    Death, NoPidfd, Orphan, ProcessTable, READY_AT_ONCE, Spawned, Target, Until, Waited,
};
pub(crate) use procfs::ProcStat;
