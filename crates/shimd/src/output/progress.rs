use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How long an operation must take until its progress is shown.
const MIN_DURATION: Duration = Duration::from_secs(1);
const BAR_WIDTH: usize = 30;

/// A progress bar on stderr, if that is a terminal and the operation takes long.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    is_terminal: bool,
    is_shown: bool,
    total: usize,
    done: usize,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            begun: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
            is_shown: false,
            total,
            done: 0,
        }
    }

    /// Counts one part as done.
    pub(crate) fn advance(&mut self) {
        self.done += 1;
    }

    /// Draws the bar.
    pub(crate) fn draw(&mut self) {
        if self.is_terminal && self.begun.elapsed() >= MIN_DURATION {
            self.is_shown = true;
            let _ = write!(io::stderr(), "\r{}", bar(self.done, self.total));
        }
    }

    /// Clears the bar, so that a line can be printed in its place.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            // EL, ECMA-48: erases the line.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(done: usize, total: usize) -> String {
    let filled = (BAR_WIDTH * done).checked_div(total).unwrap_or(BAR_WIDTH);
    let (filled, rest) = ("#".repeat(filled), BAR_WIDTH.saturating_sub(filled));
    format!("[{filled}{}] {done}/{total}", " ".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_part_that_is_done() {
        assert_eq!(bar(0, 2), format!("[{}] 0/2", " ".repeat(30)));
        assert_eq!(
            bar(1, 2),
            format!("[{}{}] 1/2", "#".repeat(15), " ".repeat(15))
        );
        assert_eq!(bar(2, 2), format!("[{}] 2/2", "#".repeat(30)));
    }
}
