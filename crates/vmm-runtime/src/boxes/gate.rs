/// Which operations may begin on a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// All.
    Open,
    /// None: a removal is in progress.
    Removing,
    /// None: the box was removed.
    Removed,
    /// None: the runtime is shutting down.
    Closed,
}
