use std::path::PathBuf;

/// A box whose orphans must be cleaned up: processes that its payload or its health check left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CleanupTarget {
    /// The box's directory. Descendants of the payload have it in their environment.
    pub(crate) dir: PathBuf,
    /// The session of the shim, if the shim has just ended; it identifies descendants that cleared
    /// their environment. Later the number may belong to another session.
    pub(crate) session: Option<u32>,
    /// When the run began, in clock ticks since boot, if this process or its ancestors
    /// [adopt the orphans](super::adopt_orphans_of). Otherwise they may be anywhere.
    pub(crate) since: Option<u64>,
}
