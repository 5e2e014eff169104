/// What may be begun with a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    Removing,
    Removed,
    /// The runtime is being shut down.
    Closed,
}
