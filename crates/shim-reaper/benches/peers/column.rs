/// Who was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    Ours,
    TokioAwaited,
    TokioDroppedBusy,
    TokioDroppedIdle,
    AsyncProcess,
    Polling,
    /// A thread blocked in `wait` per child, or the bare system calls.
    Floor,
}

impl Column {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ours,
        Self::TokioAwaited,
        Self::TokioDroppedBusy,
        Self::TokioDroppedIdle,
        Self::AsyncProcess,
        Self::Polling,
        Self::Floor,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ours => "shim-reaper",
            Self::TokioAwaited => "tokio, awaited",
            Self::TokioDroppedBusy => "tokio, dropped, busy",
            Self::TokioDroppedIdle => "tokio, dropped, idle",
            Self::AsyncProcess => "async-process, dropped",
            Self::Polling => "polling thread",
            Self::Floor => "floor",
        }
    }
}
