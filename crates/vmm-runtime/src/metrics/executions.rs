use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vmm_protocol::Ending;

/// What a runtime has counted of the commands that it started in boxes, beside their payloads.
///
/// Does not count commands that an earlier runtime started, except for the bytes that clients of this
/// runtime exchange with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExecutionMetrics {
    /// The number of commands that were started.
    pub started: u64,
    /// The number of commands that could not be started.
    pub start_failures: u64,
    /// The number of commands that are running.
    pub running: u64,
    /// The number of commands that exited with code 0.
    pub succeeded: u64,
    /// The number of commands that exited with another code.
    pub failed: u64,
    /// The number of commands that a signal ended.
    pub signaled: u64,
    /// The number of commands that the kernel killed because memory was short.
    pub out_of_memory: u64,
    /// The number of commands of which only is known that they ended, because their box ended first.
    pub lost: u64,
    /// The number of bytes sent to the stdin of commands.
    pub stdin_bytes: u64,
    /// The number of bytes received from the stdout of commands.
    pub stdout_bytes: u64,
    /// The number of bytes received from the stderr of commands.
    pub stderr_bytes: u64,
}

/// The counters behind [`ExecutionMetrics`]: those of a box, or of a runtime.
#[derive(Debug, Default)]
pub(crate) struct ExecutionCounters {
    started: AtomicU64,
    start_failures: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    signaled: AtomicU64,
    out_of_memory: AtomicU64,
    lost: AtomicU64,
    stdin_bytes: AtomicU64,
    stdout_bytes: AtomicU64,
    stderr_bytes: AtomicU64,
    /// The counters of the runtime, if these are of a box.
    runtime: Option<Arc<Self>>,
}

impl ExecutionCounters {
    /// Creates the counters of a box. What they count also counts for its runtime.
    pub(crate) fn of_box(runtime: Arc<Self>) -> Self {
        Self {
            runtime: Some(runtime),
            ..Self::default()
        }
    }

    /// Counts the start of a command.
    pub(crate) fn start(self: &Arc<Self>) -> RunningExecution {
        self.add(1, |it| &it.started);
        RunningExecution {
            counters: Arc::clone(self),
            ending: None,
        }
    }

    pub(crate) fn add_start_failure(&self) {
        self.add(1, |it| &it.start_failures);
    }

    pub(crate) fn add_stdin(&self, bytes: usize) {
        self.add(bytes as u64, |it| &it.stdin_bytes);
    }

    pub(crate) fn add_stdout(&self, bytes: usize) {
        self.add(bytes as u64, |it| &it.stdout_bytes);
    }

    pub(crate) fn add_stderr(&self, bytes: usize) {
        self.add(bytes as u64, |it| &it.stderr_bytes);
    }

    fn add(&self, count: u64, counter: fn(&Self) -> &AtomicU64) {
        counter(self).fetch_add(count, Ordering::Relaxed);
        if let Some(runtime) = &self.runtime {
            runtime.add(count, counter);
        }
    }

    pub(crate) fn snapshot(&self) -> ExecutionMetrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Read before `started`, so that not more have ended than have started.
        let mut metrics = ExecutionMetrics {
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            signaled: read(&self.signaled),
            out_of_memory: read(&self.out_of_memory),
            lost: read(&self.lost),
            start_failures: read(&self.start_failures),
            stdin_bytes: read(&self.stdin_bytes),
            stdout_bytes: read(&self.stdout_bytes),
            stderr_bytes: read(&self.stderr_bytes),
            ..ExecutionMetrics::default()
        };
        metrics.started = read(&self.started);
        let ended = metrics.succeeded
            + metrics.failed
            + metrics.signaled
            + metrics.out_of_memory
            + metrics.lost;
        metrics.running = metrics.started.saturating_sub(ended);
        metrics
    }
}

/// A command that counts as running. Counts as lost if it is dropped without an ending.
#[derive(Debug)]
pub(crate) struct RunningExecution {
    counters: Arc<ExecutionCounters>,
    ending: Option<Ending>,
}

impl RunningExecution {
    /// Counts the end of the command.
    pub(crate) fn end(mut self, ending: &Ending) {
        self.ending = Some(ending.clone());
    }
}

impl Drop for RunningExecution {
    fn drop(&mut self) {
        self.counters.add(
            1,
            match self.ending {
                Some(Ending::Exited { code: 0 }) => |it| &it.succeeded,
                Some(Ending::Exited { .. }) => |it| &it.failed,
                Some(Ending::Signaled { .. }) => |it| &it.signaled,
                Some(Ending::OutOfMemory) => |it| &it.out_of_memory,
                _ => |it| &it.lost,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_counts_for_its_box_and_its_runtime_until_it_has_ended() {
        let runtime = Arc::new(ExecutionCounters::default());
        let of_box = Arc::new(ExecutionCounters::of_box(Arc::clone(&runtime)));
        let other = Arc::new(ExecutionCounters::of_box(Arc::clone(&runtime)));
        of_box.start().end(&Ending::Exited { code: 0 });
        of_box.start().end(&Ending::Exited { code: 3 });
        of_box.start().end(&Ending::Signaled { signal: 9 });
        of_box.start().end(&Ending::OutOfMemory);
        drop(of_box.start());
        let running = other.start();
        other.add_stdout(7);
        let expected = ExecutionMetrics {
            started: 5,
            succeeded: 1,
            failed: 1,
            signaled: 1,
            out_of_memory: 1,
            lost: 1,
            ..ExecutionMetrics::default()
        };
        assert_eq!(of_box.snapshot(), expected);
        let expected = ExecutionMetrics {
            started: 6,
            running: 1,
            stdout_bytes: 7,
            ..expected
        };
        assert_eq!(runtime.snapshot(), expected);
        running.end(&Ending::Exited { code: 0 });
        assert_eq!(other.snapshot().running, 0);
    }
}
