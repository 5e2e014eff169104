use std::time::Duration;

/// How much of everything.
pub(crate) struct Effort {
    quick: bool,
}

impl Effort {
    pub(crate) fn new(quick: bool) -> Self {
        Self { quick }
    }

    /// `full` repetitions, or a few.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(5) } else { full }
    }

    pub(crate) fn window(&self, full: Duration) -> Duration {
        if self.quick { full / 4 } else { full }
    }
}
