//! Children that both kernels reap as they exit, for requests of io_uring.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::view::events;
use super::{DEADLINE, Kernels, own_process, play_histories};
use crate::kernel::{Linux, ProcessTable};
use crate::parker::backend::Backend;
use crate::wake_event::WakeEvent;

#[test]
fn simulated_kernel_that_reaps_agrees_with_the_running_one() {
    let real = Linux::new(true, true);
    let wake_event = Arc::new(WakeEvent::new().unwrap());
    if matches!(Backend::new(&real, &wake_event), Backend::Epoll(_)) {
        assert!(std::env::var_os("CI").is_none(), "io_uring is unavailable");
        eprintln!("SKIPPED: io_uring is unavailable");
        return;
    }
    let test = "simulation::model_check::requests::simulated_kernel_that_reaps_agrees_with_the_running_one";
    own_process::in_own_process(test, || play_histories(true));
}

impl Kernels<'_> {
    /// Makes both kernels reap a child as it exits.
    pub(super) fn reap_on_exit(&self, pid: u32) {
        let process = &self.processes[&pid];
        if let (Some((real, simulated)), Some(_)) = (&process.pidfds, &self.ring) {
            self.real.reap_on_exit(real, process.token);
            self.simulated.reap_on_exit(simulated, process.token);
        }
    }

    /// Lets both kernels reap the children that have exited.
    pub(super) fn reap_in_kernel(&mut self) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        self.simulated.enter();
        self.simulated.leave();
        let expected = events(&self.simulated);
        let deadline = Instant::now() + DEADLINE;
        let mut found = Vec::new();
        loop {
            ring.block(Some(Duration::ZERO)).unwrap();
            found.extend(events(self.real));
            if found.len() >= expected.len() {
                break;
            }
            assert!(Instant::now() < deadline, "{found:?} of {expected:?}");
        }
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    /// Forgets the processes whose pids may be recycled from now on.
    pub(super) fn forget_reaped(&mut self) {
        let simulated = &self.simulated;
        let processes = mem::take(&mut self.processes).into_iter();
        let (reaped, left): (BTreeMap<_, _>, _) =
            processes.partition(|(_, one)| simulated.process(one.index).state.is_reaped());
        self.processes = left;
        for (real, simulated) in reaped.into_values().filter_map(|one| one.pidfds) {
            let closed = (self.real.release(real), self.simulated.release(simulated));
            assert_eq!(closed.0.is_some(), closed.1.is_some());
        }
    }

    /// Ends the requests.
    pub(super) fn end_requests(&mut self) {
        self.ring = None;
        self.simulated.close_requests();
        assert_eq!(events(self.real), events(&self.simulated));
    }
}
