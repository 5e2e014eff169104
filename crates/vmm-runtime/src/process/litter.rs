use std::path::PathBuf;

/// Whose strays: what the payload of a box, or its health check, has left behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Litter {
    /// The box's directory, which is in the environment of what descends from its payload.
    pub(crate) dir: PathBuf,
    /// The session of its shim, if that has just ended: for those who have emptied or overwritten
    /// their environment. Later the number may be another's.
    pub(crate) session: Option<u32>,
}
