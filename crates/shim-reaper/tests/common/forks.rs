//! Cheap children, for tests that need thousands: forks that execute no program.

use nix::libc;
use nix::sys::signal::Signal::SIGKILL;
use nix::unistd::{ForkResult, fork};

/// Forks a child that stays until it is killed, and returns its pid.
pub fn idle_child() -> u32 {
    fork_child(|| {
        loop {
            // SAFETY: takes no arguments.
            unsafe { libc::pause() };
        }
    })
}

/// Forks a child that exits with `code` at once, and returns its pid.
pub fn exiting_child(code: i32) -> u32 {
    // SAFETY: ends the child without running any code of the parent.
    fork_child(|| unsafe { libc::_exit(code) })
}

/// Forks a child that runs `body`, and returns its pid. `body` may only call async-signal-safe
/// functions, signal-safety(7).
pub fn fork_child(body: impl FnOnce()) -> u32 {
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

/// Idle children that are killed when this is dropped, even if the test fails. A reaper reaps them.
pub struct IdleChildren(pub Vec<u32>);

impl IdleChildren {
    pub fn fork(count: usize) -> Self {
        Self((0..count).map(|_| idle_child()).collect())
    }

    /// Kills the last `count` children and returns their pids.
    pub fn kill(&mut self, count: usize) -> Vec<u32> {
        let pids = self.0.split_off(self.0.len() - count);
        for pid in &pids {
            super::kill(*pid, SIGKILL);
        }
        pids
    }
}

impl Drop for IdleChildren {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = nix::sys::signal::kill(super::as_pid(*pid), SIGKILL);
        }
    }
}
