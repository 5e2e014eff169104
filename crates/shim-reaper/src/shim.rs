use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::task::{Poll, Waker};

use nix::libc;

use crate::kernel::{ProcStat, ProcessTable, Target};
use crate::sync::{Mutex, MutexGuard};
use crate::tokio_child::TokioChild;
use crate::{ReaperClosed, ShimExit, Signal};

/// The start time of a registered process that did not exist. No process has it, so that the shim is
/// never taken for a process that gets the pid.
pub(crate) const NO_PROCESS: u64 = u64::MAX;

/// A registered process. Its handles, the directory and the registry share it.
#[derive(Debug)]
pub(crate) struct Shim<P> {
    pub(crate) pid: u32,
    /// Unique among all registrations of a reaper, unlike the pid.
    pub(crate) id: u64,
    pub(crate) leads_group: bool,
    /// The directory of the control group in which it was created.
    pub(crate) control_group: Option<OwnedFd>,
    state: Mutex<State<P>>,
}

#[derive(Debug)]
pub(crate) struct State<P> {
    pub(crate) role: Role,
    pub(crate) pidfd: Option<P>,
    /// Whether the pidfd has a watch. Without one, only interval sweeps check the shim.
    pub(crate) is_watched: bool,
    /// The pidfd of a finished shim that leads a process group, which it still identifies.
    pub(crate) group_pidfd: Option<P>,
    /// The identity of the process, with its pid, if it has no pidfd.
    pub(crate) start_time: Option<u64>,
    pub(crate) tokio_child: Option<TokioChild>,
    /// Whether it was sent SIGKILL through this reaper.
    killed: bool,
    outcome: Outcome,
}

/// The groups that are signalled with a shim.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Whether the shim leads a process group, which has its pid as number.
    pub(crate) leads: bool,
    /// The directory of the control group in which it was created.
    pub(crate) control: Option<OwnedFd>,
}

/// Who may wait for a shim. A later registration of the same process can only raise the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Not a child of this process; the reaper never waits for it.
    Attached,
    /// The owner may hold its `Child`, and may wait for it first.
    Shared,
    /// Only the reaper may wait for it.
    Owned,
}

#[derive(Debug)]
enum Outcome {
    Running(Waiters),
    /// In a box, so that a running shim takes no memory for it.
    Exited(Box<ShimExit>),
    Closed,
}

#[derive(Debug, Default)]
struct Waiters {
    next_key: u32,
    wakers: Vec<(u32, Waker)>,
}

impl<P> Shim<P> {
    pub(crate) fn new(
        pid: u32,
        id: u64,
        leads_group: bool,
        role: Role,
        pidfd: Option<P>,
        start_time: Option<u64>,
    ) -> Self {
        Self {
            pid,
            id,
            leads_group,
            control_group: None,
            state: Mutex::new(State {
                role,
                is_watched: pidfd.is_some(),
                pidfd,
                group_pidfd: None,
                start_time,
                tokio_child: None,
                killed: false,
                outcome: Outcome::Running(Waiters::default()),
            }),
        }
    }

    pub(crate) fn in_control_group(mut self, dir: Option<OwnedFd>) -> Self {
        self.control_group = dir;
        self
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to this process only. Fails with ESRCH once its exit is known.
    pub(crate) fn signal<K>(&self, kernel: &K, signal: Signal) -> io::Result<()>
    where
        K: ProcessTable<Pidfd = P>,
    {
        // The sweep reaps under this lock too, so the pid cannot be recycled in between.
        let mut state = self.state();
        // After a shutdown, other code may wait for a process of which only the pid is known.
        let may_be_reaped = state.is_closed() && !state.has_identity();
        if state.has_ended() || may_be_reaped {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let sent = self.send(&state, kernel, signal);
        if signal == Signal::SIGKILL && sent.is_ok() {
            state.killed = true;
        }
        sent
    }

    fn send<K>(&self, state: &State<P>, kernel: &K, signal: Signal) -> io::Result<()>
    where
        K: ProcessTable<Pidfd = P>,
    {
        if let Some(pidfd) = &state.pidfd {
            return kernel.signal(pidfd, signal);
        }
        // Opened before the start time is read, which then proves that it is that of the process.
        if let (Ok(pidfd), Ok(Some(stat))) = (kernel.open(self.pid), kernel.stat(self.pid)) {
            if state.is_same_process(&stat) {
                return kernel.signal(&pidfd, signal);
            }
        }
        match kernel.stat(self.pid) {
            Ok(Some(stat)) if state.is_same_process(&stat) => kernel.signal_pid(self.pid, signal),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            // Out of descriptors. A child that only the reaper may wait for still has its pid, except
            // after a shutdown, because the reaper does not notice other waits any more.
            Err(_) if state.role == Role::Owned && !state.is_closed() => {
                kernel.signal_pid(self.pid, signal)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns whether the process runs. Asks the kernel, so that it works after a shutdown too.
    pub(crate) fn is_process_running<K>(&self, kernel: &K) -> bool
    where
        K: ProcessTable<Pidfd = P>,
    {
        let state = self.state();
        if state.has_ended() {
            return false;
        }
        match &state.pidfd {
            Some(pidfd) => !kernel.has_exited(pidfd),
            None => match kernel.stat(self.pid) {
                Ok(stat) => stat.is_some_and(|stat| state.is_same_process(&stat) && !stat.exited),
                // Out of descriptors.
                Err(_) => true,
            },
        }
    }

    /// Returns the exit, or stores the waker. `key` identifies the caller among the waiters.
    pub(crate) fn poll_exit(
        &self,
        key: &mut Option<u32>,
        waker: &Waker,
    ) -> Poll<Result<ShimExit, ReaperClosed>> {
        // Cloned, and the previous one dropped, without the lock: both may run code of the executor.
        let waker = waker.clone();
        let replaced = match &mut self.state().outcome {
            Outcome::Running(waiters) => waiters.add(key, waker),
            Outcome::Exited(exit) => return Poll::Ready(Ok(**exit)),
            Outcome::Closed => return Poll::Ready(Err(ReaperClosed)),
        };
        drop(replaced);
        Poll::Pending
    }

    pub(crate) fn stop_waiting(&self, key: u32) {
        let waker = match &mut self.state().outcome {
            Outcome::Running(waiters) => waiters.remove(key),
            _ => None,
        };
        // As in `poll_exit`.
        drop(waker);
    }
}

impl Shim<OwnedFd> {
    /// Fails with ESRCH if the process has ended, and if the shim has no pidfd.
    pub(crate) fn duplicate_pidfd(&self) -> io::Result<OwnedFd> {
        let state = self.state();
        match &state.pidfd {
            Some(pidfd) => pidfd.try_clone(),
            None if state.has_ended() => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "the reaper has no pidfd of pid {}; use Linux 5.3 or later, and raise the limit \
                     on open files",
                    self.pid
                ),
            )),
        }
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<P> Shim<P> {
    pub(crate) fn is_locked(&self) -> bool {
        matches!(
            self.state.try_lock(),
            Err(std::sync::TryLockError::WouldBlock)
        )
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<P> State<P> {
    pub(crate) fn exit(&self) -> Option<ShimExit> {
        self.outcome().ok().flatten()
    }
}

impl<P> State<P> {
    /// Returns whether the start time is that of the registered process, or not known.
    pub(crate) fn is_same_process(&self, stat: &ProcStat) -> bool {
        self.start_time.is_none_or(|start| start == stat.start_time)
    }

    pub(crate) fn wait_target(&self, pid: u32) -> Target<'_, P> {
        match &self.pidfd {
            Some(pidfd) => Target::Pidfd(pid, pidfd),
            None => Target::Pid(pid),
        }
    }

    /// Returns whether it is a child whose exit is not known, and was sent SIGKILL.
    pub(crate) fn is_killed_child(&self) -> bool {
        self.killed && self.is_running_child()
    }

    pub(crate) fn is_running_child(&self) -> bool {
        self.role != Role::Attached && self.is_running()
    }

    fn has_identity(&self) -> bool {
        self.pidfd.is_some() || self.start_time.is_some()
    }

    /// Returns whether the exit is known, or there was no process.
    fn has_ended(&self) -> bool {
        matches!(self.outcome, Outcome::Exited(_)) || self.start_time == Some(NO_PROCESS)
    }

    /// Returns the exit, or `None` while the shim runs.
    pub(crate) fn outcome(&self) -> Result<Option<ShimExit>, ReaperClosed> {
        match &self.outcome {
            Outcome::Running(_) => Ok(None),
            Outcome::Exited(exit) => Ok(Some(**exit)),
            Outcome::Closed => Err(ReaperClosed),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.outcome, Outcome::Closed)
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.outcome, Outcome::Running(_))
    }

    /// Resolves every handle. Returns false if they are resolved already. The caller wakes the
    /// wakers after it has released every lock.
    pub(crate) fn resolve(&mut self, exit: ShimExit, wakers: &mut Vec<Waker>) -> bool {
        self.replace_running(Outcome::Exited(Box::new(exit)), wakers)
    }

    /// Resolves every handle to [`ReaperClosed`]. Returns false if they are resolved already.
    pub(crate) fn close(&mut self, wakers: &mut Vec<Waker>) -> bool {
        self.replace_running(Outcome::Closed, wakers)
    }

    fn replace_running(&mut self, outcome: Outcome, wakers: &mut Vec<Waker>) -> bool {
        let Outcome::Running(_) = self.outcome else {
            return false;
        };
        if let Outcome::Running(waiters) = mem::replace(&mut self.outcome, outcome) {
            wakers.extend(waiters.wakers.into_iter().map(|(_, waker)| waker));
        }
        true
    }
}

impl Waiters {
    /// Returns the waker that the new one replaces.
    fn add(&mut self, key: &mut Option<u32>, waker: Waker) -> Option<Waker> {
        let entry = key.and_then(|key| self.wakers.iter_mut().find(|(k, _)| *k == key));
        if let Some((_, stored)) = entry {
            return Some(mem::replace(stored, waker));
        }
        let new = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        self.wakers.push((new, waker));
        *key = Some(new);
        None
    }

    fn remove(&mut self, key: u32) -> Option<Waker> {
        let index = self.wakers.iter().position(|(k, _)| *k == key)?;
        Some(self.wakers.swap_remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;
    use crate::kernel::simulated::{Features, Simulated};

    struct NoopWaker;

    impl Wake for NoopWaker {
        fn wake(self: Arc<Self>) {}
    }

    /// The bound of BENCHMARKS.md, which has the arithmetic of the two maps that refer to it.
    #[test]
    fn a_running_shim_takes_little_memory() {
        let counts_of_arc = 2 * size_of::<usize>();
        assert!(size_of::<Shim<OwnedFd>>() + counts_of_arc <= 120);
    }

    #[test]
    fn waker_is_kept_until_its_wait_ends_or_has_another() {
        let shim = Shim::<()>::new(7, 1, false, Role::Owned, None, None);
        let wakers = [(); 3].map(|()| Arc::new(NoopWaker));
        let is_kept = || wakers.each_ref().map(|waker| Arc::strong_count(waker) > 1);
        let poll = |key: &mut Option<u32>, waker: usize| {
            let waker = Waker::from(Arc::clone(&wakers[waker]));
            assert!(shim.poll_exit(key, &waker).is_pending());
        };
        let (mut first, mut second) = (None, None);
        poll(&mut first, 0);
        poll(&mut second, 1);
        assert_eq!(is_kept(), [true, true, false]);
        poll(&mut first, 2);
        assert_eq!(is_kept(), [false, true, true]);
        shim.stop_waiting(first.unwrap());
        assert_eq!(is_kept(), [false, true, false]);
        shim.stop_waiting(second.unwrap());
        assert_eq!(is_kept(), [false; 3]);
    }

    #[test]
    fn pid_is_signalled_without_descriptors_only_if_no_other_code_may_wait_for_it() {
        for (role, is_signalled) in [(Role::Shared, false), (Role::Owned, true)] {
            let kernel = Simulated::new(Features::LATEST);
            let process = kernel.fork(7);
            kernel.limit_descriptors(0);
            let shim = Shim::new(7, 1, false, role, None, Some(0));
            let sent = shim.signal(&kernel, Signal::SIGKILL);
            assert_eq!(sent.is_ok(), is_signalled);
            assert_eq!(!kernel.process(process).state.is_running(), is_signalled);
        }
    }
}
