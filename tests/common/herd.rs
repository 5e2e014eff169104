//! Thousands of children, made cheaply: forks that never execute anything.

use nix::libc;
use nix::sys::signal::Signal::SIGKILL;
use nix::unistd::{ForkResult, fork};

/// A child that stays until it is killed.
pub fn idler() -> u32 {
    forked(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

/// A child that exits with `code` at once.
pub fn ends_with(code: i32) -> u32 {
    // SAFETY: ends the child without running anything of the parent's.
    forked(|| unsafe { libc::_exit(code) })
}

/// `body` may only do what a signal handler may.
pub fn forked(body: impl FnOnce()) -> u32 {
    // SAFETY: the child calls async-signal-safe functions only, and never returns.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => u32::try_from(child.as_raw()).unwrap(),
        ForkResult::Child => {
            body();
            // SAFETY: as above.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Idlers that are killed when the test is over, however it ends; a reaper collects them.
pub struct Herd(pub Vec<u32>);

impl Herd {
    pub fn of(count: usize) -> Self {
        Self((0..count).map(|_| idler()).collect())
    }

    /// Kills `count` of them and returns their pids.
    pub fn cull(&mut self, count: usize) -> Vec<u32> {
        let culled = self.0.split_off(self.0.len() - count);
        for pid in &culled {
            super::kill(*pid, SIGKILL);
        }
        culled
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = nix::sys::signal::kill(super::as_pid(*pid), SIGKILL);
        }
    }
}
