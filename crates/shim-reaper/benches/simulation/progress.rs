use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// A progress bar on a terminal.
pub(crate) struct Progress {
    pub(crate) start: Instant,
    steps: u64,
    shown: Option<Instant>,
}

impl Progress {
    const WIDTH: usize = 40;

    pub(crate) fn new(steps: u64) -> Self {
        Self {
            start: Instant::now(),
            steps,
            shown: None,
        }
    }

    pub(crate) fn show(&mut self, done: u64) {
        let is_due = |shown: Instant| shown.elapsed() >= Duration::from_millis(100);
        if !stderr().is_terminal() || !self.shown.is_none_or(is_due) {
            return;
        }
        self.shown = Some(Instant::now());
        let part = (done as f64 / self.steps as f64).min(1.0);
        let bar = "#".repeat((part * Self::WIDTH as f64) as usize);
        let _ = write!(
            stderr(),
            "\r[{bar:<width$}] {:3.0}% {done}/{}",
            part * 100.0,
            self.steps,
            width = Self::WIDTH
        );
    }

    pub(crate) fn end(&self) {
        if self.shown.is_some() {
            let _ = writeln!(stderr());
        }
    }
}
