use std::collections::{BTreeMap, VecDeque};
use std::mem;

use super::kernel::{Descriptor, Simulated};
use super::mechanism::Mechanism;
use super::process::{Parent, Process, ProcessState, WaitBy, wait_status};
use crate::kernel::WaitResult;
use crate::sys::ChildExit;

/// The requests of an io_uring that reap children as they exit, as `ReapRequests` and `Ring` have them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Whether the worker has a ring.
    is_open: bool,
    is_stopped: bool,
    /// Whether the worker waits in the kernel, which may reap then.
    is_in_kernel: bool,
    by_descriptor: BTreeMap<u64, Request>,
    /// The tokens of requests that have ended.
    pub(super) tokens: VecDeque<u64>,
    /// Whether the worker has yet to notice that requests have ended.
    has_news: bool,
    /// Whether a pidfd was closed while its request was in flight.
    pub(super) lost_pidfd: bool,
    /// Whether a request has reaped a child.
    has_reaped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    process: usize,
    token: u64,
    state: RequestState,
    /// Whether the kernel closes the pidfd when the request has ended.
    is_unneeded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Queued,
    InFlight,
    /// Ended, with the exit code if it has reaped the process. The worker has not left the kernel.
    Ended(Option<i32>),
    /// The process was reaped, and no sweep has asked for its exit code.
    Reaped(i32),
}

impl Requests {
    /// Returns a child whose request would reap it now.
    fn next_due(&self, processes: &[Process]) -> Option<u64> {
        let mut requests = self.by_descriptor.iter();
        let due = requests.find(|(_, request)| {
            request.state == RequestState::InFlight
                && !processes[request.process].state.is_running()
        });
        due.filter(|_| self.is_in_kernel).map(|(number, _)| *number)
    }

    pub(super) fn is_due(&self, processes: &[Process]) -> bool {
        self.next_due(processes).is_some()
    }

    /// Notes that a pidfd is closed.
    pub(super) fn note_closed(&mut self, descriptor: u64) {
        let request = self.by_descriptor.get(&descriptor);
        let is_in_flight = |request: &Request| {
            matches!(
                request.state,
                RequestState::InFlight | RequestState::Ended(_)
            )
        };
        self.lost_pidfd |= request.is_some_and(is_in_flight);
    }

    fn status(&mut self, descriptor: u64, keep: bool) -> Option<WaitResult> {
        let RequestState::Reaped(code) = self.by_descriptor.get(&descriptor)?.state else {
            return None;
        };
        if !keep {
            self.by_descriptor.remove(&descriptor);
        }
        Some(WaitResult::Exited(ChildExit {
            status: wait_status(code),
            usage: None,
        }))
    }

    /// Publishes the requests that have ended. Returns the pidfds to close.
    fn leave(&mut self) -> Vec<u64> {
        self.is_in_kernel = false;
        let mut closed = Vec::new();
        let (tokens, has_news) = (&mut self.tokens, &mut self.has_news);
        self.by_descriptor.retain(|number, request| {
            let RequestState::Ended(code) = request.state else {
                return true;
            };
            if request.is_unneeded {
                closed.push(*number);
                return false;
            }
            tokens.push_back(request.token);
            *has_news = true;
            let reaped = code.map(RequestState::Reaped);
            request.state = reaped.unwrap_or(request.state);
            reaped.is_some()
        });
        closed
    }

    /// Cancels the requests. Returns the pidfds to close.
    fn cancel(&mut self) -> Vec<u64> {
        let requests = mem::take(&mut self.by_descriptor);
        let is_reaped = |request: &Request| matches!(request.state, RequestState::Reaped(_));
        let (reaped, cancelled): (BTreeMap<_, _>, _) =
            requests.into_iter().partition(|(_, one)| is_reaped(one));
        self.by_descriptor = reaped;
        let cancelled: BTreeMap<u64, Request> = cancelled;
        let (unneeded, needed): (Vec<_>, Vec<_>) =
            cancelled.into_iter().partition(|(_, one)| one.is_unneeded);
        self.tokens.extend(needed.iter().map(|(_, one)| one.token));
        unneeded.into_iter().map(|(number, _)| number).collect()
    }
}

impl Simulated {
    /// Gives the worker a ring, if the kernel has one.
    pub(crate) fn open_requests(&self) {
        let mut table = self.table();
        table.requests.is_open = table.features.io_uring;
    }

    /// Lets the worker wait in the kernel, which starts the requests.
    pub(crate) fn enter(&self) {
        let mut table = self.table();
        if !table.requests.is_open || table.requests.is_stopped {
            return;
        }
        table.requests.is_in_kernel = true;
        for request in table.requests.by_descriptor.values_mut() {
            if request.state == RequestState::Queued {
                request.state = RequestState::InFlight;
            }
        }
        table.raise();
    }

    /// Lets the worker leave the kernel, which executes its requests before.
    pub(crate) fn leave(&self) {
        self.reap_in_kernel();
        let mut table = self.table();
        let closed = table.requests.leave();
        table.close_all(&closed);
    }

    /// Makes the worker leave the kernel.
    fn recall(&self) {
        self.leave();
        self.table().epoll.report_event();
    }

    pub(crate) fn close_requests(&self) {
        let mut table = self.table();
        let mut closed = table.requests.leave();
        closed.extend(table.requests.cancel());
        table.requests.is_open = false;
        table.close_all(&closed);
    }

    /// Executes the requests of children that have exited, if the worker is in the kernel.
    pub(crate) fn reap_in_kernel(&self) {
        while let Some(reaped) = self.execute_request() {
            if let (Some(process), Some(interrupts)) = (reaped, self.interrupts()) {
                interrupts.reaped(process, false);
            }
        }
    }

    /// Executes one request. Returns the process that it has reaped.
    fn execute_request(&self) -> Option<Option<usize>> {
        let mut table = self.table();
        let number = table.requests.next_due(&table.processes)?;
        let index = table.requests.by_descriptor.get(&number)?.process;
        let process = &mut table.processes[index];
        let pid = process.pid;
        let code = match process.state {
            ProcessState::Zombie(code) if process.parent == Parent::This => Some(code),
            _ => None,
        };
        if let Some(code) = code {
            process.reaped_by = Some(WaitBy::Reaper);
            table.set(index, ProcessState::Reaped(code));
            table.reaped_by_reaper.push(pid);
            table.requests.has_reaped = true;
        }
        if let Some(request) = table.requests.by_descriptor.get_mut(&number) {
            request.state = RequestState::Ended(code);
        }
        Some(code.map(|_| index))
    }

    /// Returns whether requests have ended since the last call.
    pub(super) fn take_news(&self) -> bool {
        mem::take(&mut self.table().requests.has_news)
    }

    /// Returns whether a request would reap a child now.
    pub(crate) fn has_due_request(&self) -> bool {
        let table = self.table();
        table.requests.is_due(&table.processes)
    }

    /// Returns how many children the kernel has reaped of which the reaper does not know.
    pub(crate) fn unreported_reaps(&self) -> u64 {
        let table = self.table();
        let requests = table.requests.by_descriptor.values();
        let reaped = requests.filter(|request| {
            matches!(
                request.state,
                RequestState::Ended(Some(_)) | RequestState::Reaped(_)
            )
        });
        reaped.count() as u64
    }

    pub(crate) fn request_count(&self) -> usize {
        self.table().requests.by_descriptor.len()
    }

    pub(crate) fn has_reaped_for_request(&self) -> bool {
        self.table().requests.has_reaped
    }

    pub(crate) fn has_lost_pidfd(&self) -> bool {
        self.table().requests.lost_pidfd
    }

    pub(super) fn add_request(&self, pidfd: &Descriptor, token: u64) {
        // Without an interrupt, which may panic: the reaper is about to admit shims.
        let mut table = self.table();
        if !table.requests.is_open || table.requests.is_stopped {
            return;
        }
        let request = Request {
            process: pidfd.process,
            token,
            state: RequestState::Queued,
            is_unneeded: false,
        };
        table.requests.by_descriptor.insert(pidfd.number, request);
        table.epoll.close(pidfd.number);
        let is_in_kernel = table.requests.is_in_kernel;
        if is_in_kernel {
            // Wakes the worker.
            table.epoll.report_event();
        }
    }

    pub(super) fn release_pidfd(&self, pidfd: Descriptor) -> Option<Descriptor> {
        let mut table = self.table();
        if table.features.lacks(Mechanism::RequestPidfds) {
            return Some(pidfd);
        }
        let requests = &mut table.requests.by_descriptor;
        if let Some(request) = requests.get_mut(&pidfd.number) {
            if matches!(
                request.state,
                RequestState::InFlight | RequestState::Ended(_)
            ) {
                request.is_unneeded = true;
                // Its number is closed with the request.
                mem::forget(pidfd);
                return None;
            }
            requests.remove(&pidfd.number);
        }
        Some(pidfd)
    }

    pub(super) fn stop_requests(&self) {
        self.interrupt("futex");
        self.recall();
        let mut table = self.table();
        table.requests.is_stopped = true;
        let closed = table.requests.cancel();
        table.close_all(&closed);
    }

    pub(super) fn status_of(&self, pidfd: &Descriptor, keep: bool) -> Option<WaitResult> {
        if self.lacks(Mechanism::RequestStatus) {
            return None;
        }
        self.table().requests.status(pidfd.number, keep)
    }

    /// Does what [`status_of`](Self::status_of) does once the worker has left the kernel.
    pub(super) fn status_of_reaped(&self, pidfd: &Descriptor, keep: bool) -> Option<WaitResult> {
        self.recall();
        self.status_of(pidfd, keep)
    }
}
