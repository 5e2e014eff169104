use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use tokio::runtime::Handle;

use crate::census;
use crate::child::Fate;
use crate::random::Random;

/// What goes wrong in a round, apart from what the tasks do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    None,
    /// A thread waits for any child.
    ForeignWaits,
    /// The kernel reaps every child, because SIGCHLD is ignored.
    IgnoredSigchld,
    /// There are no free descriptors now and then.
    LowDescriptors,
    /// The worker panics now and then.
    WorkerPanics,
    /// Tasks block all threads of the tokio runtime for a while, again and again.
    BlockedRuntime,
}

/// For how many milliseconds a task blocks a thread of the tokio runtime at most.
const MAX_BLOCKED_MILLIS: u64 = 100;

const PAUSE: Duration = Duration::from_millis(2);

impl Trouble {
    pub(crate) fn random(random: &mut Random) -> Self {
        let trouble = random.pick(&[
            Self::None,
            Self::None,
            Self::None,
            Self::None,
            Self::ForeignWaits,
            Self::IgnoredSigchld,
            Self::LowDescriptors,
            Self::WorkerPanics,
            Self::BlockedRuntime,
        ]);
        if trouble == Self::WorkerPanics && cfg!(not(feature = "failpoints")) {
            return Self::None;
        }
        trouble
    }

    /// Returns whether only the reaper can know the status of a child.
    pub(crate) fn reaps_children(self) -> bool {
        matches!(self, Self::ForeignWaits | Self::IgnoredSigchld)
    }

    pub(crate) fn begin(self, runtime: &Handle, random: &mut Random) -> TroubleMaker {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut random = random.fork();
        let run = move |mut once: Box<dyn FnMut() + Send>| {
            while !stopped.load(Relaxed) {
                once();
                thread::sleep(PAUSE);
            }
        };
        let once: Option<Box<dyn FnMut() + Send>> = match self {
            Self::None => None,
            Self::ForeignWaits => Some(Box::new(|| {
                let any = || waitpid(None, Some(WaitPidFlag::WNOHANG));
                while any().is_ok_and(|status| status.pid().is_some()) {}
            })),
            Self::IgnoredSigchld => {
                set_sigchld(SigHandler::SigIgn);
                None
            }
            Self::LowDescriptors => {
                let free = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                Some(Box::new(move || exhaust_descriptors(free, &mut random)))
            }
            Self::WorkerPanics => {
                set_worker_panics(true);
                None
            }
            Self::BlockedRuntime => {
                let runtime = runtime.clone();
                Some(Box::new(move || block_workers(&runtime, &mut random)))
            }
        };
        TroubleMaker {
            trouble: self,
            stop,
            thread: once.map(|once| thread::spawn(move || run(once))),
        }
    }
}

/// Makes the trouble of a round until it is dropped.
pub(crate) struct TroubleMaker {
    trouble: Trouble,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for TroubleMaker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        match self.trouble {
            Trouble::IgnoredSigchld => set_sigchld(SigHandler::SigDfl),
            Trouble::WorkerPanics => set_worker_panics(false),
            _ => {}
        }
    }
}

fn set_sigchld(handler: SigHandler) {
    set_disposition(Signal::SIGCHLD, handler);
}

/// Restores the default of the signals that children send themselves. A child inherits an ignored
/// signal, as SIGHUP below `nohup`.
pub(crate) fn reset_dispositions() {
    for number in Fate::SIGNALS {
        let signal = Signal::try_from(number).unwrap();
        if signal != Signal::SIGKILL {
            set_disposition(signal, SigHandler::SigDfl);
        }
    }
}

#[allow(unsafe_code)]
fn set_disposition(number: Signal, handler: SigHandler) {
    // SAFETY: neither SIG_IGN nor SIG_DFL runs code of this process.
    unsafe { signal(number, handler) }.unwrap();
}

/// Leaves a few descriptors free for a moment.
fn exhaust_descriptors((soft, hard): (libc::rlim_t, libc::rlim_t), random: &mut Random) {
    let limit = census::descriptors() as libc::rlim_t + random.below(4);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    thread::sleep(PAUSE);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

/// Blocks the threads of the tokio runtime, and then lets them run for as long.
fn block_workers(runtime: &Handle, random: &mut Random) {
    let time = random.millis(MAX_BLOCKED_MILLIS);
    for _ in 0..runtime.metrics().num_workers() {
        drop(runtime.spawn(async move { thread::sleep(time) }));
    }
    thread::sleep(2 * time);
}

/// Prints no panic that a fail point has injected.
pub(crate) fn hide_injected_panics() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<String>();
        if !message.is_some_and(|message| message.starts_with("failpoint shim_reaper::")) {
            hook(info);
        }
    }));
}

#[cfg(feature = "failpoints")]
fn set_worker_panics(on: bool) {
    for point in ["work", "reap", "pass", "examine"] {
        let name = format!("shim_reaper::{point}");
        if on {
            fail::cfg(name, "3%panic").unwrap();
        } else {
            fail::remove(name);
        }
    }
}

#[cfg(not(feature = "failpoints"))]
fn set_worker_panics(_: bool) {}
