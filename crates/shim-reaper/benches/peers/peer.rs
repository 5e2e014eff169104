use std::future::Future;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::{Pid, gettid};
use shim_reaper::ShimReaper;
use tokio::process::Command;
use tokio::runtime::{Builder, EnterGuard, Runtime};

use crate::processors::cpu_time_of;
use crate::report::Column;
use crate::system;

/// The number of worker threads, the same for every peer that has a tokio runtime.
const WORKERS: usize = 2;

/// How often a busy tokio runtime has something to do.
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) const POLLING_INTERVAL: Duration = Duration::from_millis(250);

/// Enough for a system call, and small enough for thousands of threads.
const STACK_BYTES: usize = 64 << 10;

/// The first thing that the code which awaits a child does after its exit.
pub(crate) type OnExit = Box<dyn FnOnce() + Send>;

/// A way to reap children.
pub(crate) trait Peer {
    fn column(&self) -> Column;

    /// Starts a sleeping child that the peer has to reap. Calls `on_exit` after its exit, except in
    /// a peer that cannot notify its user.
    fn start(&self, on_exit: Option<OnExit>) -> u32;
}

/// This crate.
pub(crate) struct Ours {
    pub(crate) reaper: ShimReaper,
    pub(crate) runtime: PeerRuntime,
    column: Column,
}

impl Ours {
    pub(crate) fn new() -> Self {
        let runtime = PeerRuntime::new();
        let reaper = runtime.block_on(async { ShimReaper::start() });
        Self {
            reaper,
            runtime,
            column: Column::Ours,
        }
    }

    /// With the reaper on a thread of its own.
    pub(crate) fn dedicated() -> Self {
        Self::on_thread(false, Column::Dedicated)
    }

    /// With the reaper on a thread of its own, which uses io_uring.
    pub(crate) fn io_uring() -> Self {
        Self::on_thread(true, Column::IoUring)
    }

    fn on_thread(io_uring: bool, column: Column) -> Self {
        let builder = ShimReaper::builder().io_uring(io_uring);
        Self {
            reaper: builder.start_dedicated().unwrap(),
            runtime: PeerRuntime::new(),
            column,
        }
    }
}

impl Peer for Ours {
    fn column(&self) -> Column {
        self.column
    }

    fn start(&self, on_exit: Option<OnExit>) -> u32 {
        let handle = self.reaper.spawn(system::sleeper_of_reaper()).unwrap();
        let pid = handle.id();
        if let Some(on_exit) = on_exit {
            self.runtime.spawn(async move {
                let exit = handle.await;
                on_exit();
                exit.unwrap();
            });
        }
        pid
    }
}

/// `tokio::process` with one task per child that awaits it.
pub(crate) struct TokioAwaited {
    pub(crate) runtime: PeerRuntime,
}

impl TokioAwaited {
    pub(crate) fn new() -> Self {
        Self {
            runtime: PeerRuntime::new(),
        }
    }
}

impl Peer for TokioAwaited {
    fn column(&self) -> Column {
        Column::TokioAwaited
    }

    fn start(&self, on_exit: Option<OnExit>) -> u32 {
        let mut child = self
            .runtime
            .block_on(async { Command::from(system::sleeper()).spawn().unwrap() });
        let pid = child.id().unwrap();
        self.runtime.spawn(async move {
            let status = child.wait().await;
            if let Some(on_exit) = on_exit {
                on_exit();
            }
            status.unwrap();
        });
        pid
    }
}

/// `tokio::process` with the `Child` dropped.
///
/// The first dropped child makes tokio handle SIGCHLD for the rest of the process's life, which
/// makes every exit more expensive for every other peer. Measure this peer last.
pub(crate) struct TokioDropped {
    runtime: PeerRuntime,
    busy: bool,
}

impl TokioDropped {
    pub(crate) fn idle() -> Self {
        Self {
            runtime: PeerRuntime::new(),
            busy: false,
        }
    }

    pub(crate) fn busy() -> Self {
        let runtime = PeerRuntime::new();
        runtime.spawn(async {
            loop {
                tokio::time::sleep(BUSY_INTERVAL).await;
            }
        });
        Self {
            runtime,
            busy: true,
        }
    }
}

impl Peer for TokioDropped {
    fn column(&self) -> Column {
        if self.busy {
            Column::TokioDroppedBusy
        } else {
            Column::TokioDroppedIdle
        }
    }

    fn start(&self, _: Option<OnExit>) -> u32 {
        self.runtime.block_on(async {
            let child = Command::from(system::sleeper()).spawn().unwrap();
            child.id().unwrap()
        })
    }
}

/// `async-process` with the `Child` dropped. It has its own threads.
pub(crate) struct AsyncProcess;

impl Peer for AsyncProcess {
    fn column(&self) -> Column {
        Column::AsyncProcess
    }

    fn start(&self, _: Option<OnExit>) -> u32 {
        async_process::Command::from(system::sleeper())
            .spawn()
            .unwrap()
            .id()
    }
}

/// A thread that polls every child four times a second.
pub(crate) struct PollingThread {
    id: Pid,
    pids: Arc<Mutex<Vec<u32>>>,
    /// Dropped to stop the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PollingThread {
    pub(crate) fn start_with(pids: Vec<u32>) -> Self {
        let pids = Arc::new(Mutex::new(pids));
        let polled = Arc::clone(&pids);
        let (stop, stopped) = mpsc::channel();
        let (send_id, id) = mpsc::channel();
        let thread = thread::spawn(move || {
            send_id.send(gettid()).unwrap();
            while stopped.recv_timeout(POLLING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                polled.lock().unwrap().retain(|pid| !system::try_wait(*pid));
            }
        });
        Self {
            id: id.recv().unwrap(),
            pids,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time_of(self.id)
    }
}

impl Peer for PollingThread {
    fn column(&self) -> Column {
        Column::Polling
    }

    #[allow(clippy::zombie_processes)]
    fn start(&self, _: Option<OnExit>) -> u32 {
        let pid = system::sleeper().spawn().unwrap().id();
        self.pids.lock().unwrap().push(pid);
        pid
    }
}

impl Drop for PollingThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One thread per child that blocks in `wait`: the fastest way in user space.
pub(crate) struct ThreadPerChild;

impl Peer for ThreadPerChild {
    fn column(&self) -> Column {
        Column::Floor
    }

    fn start(&self, on_exit: Option<OnExit>) -> u32 {
        let mut child = system::sleeper().spawn().unwrap();
        let pid = child.id();
        let wait = move || {
            let status = child.wait();
            if let Some(on_exit) = on_exit {
                on_exit();
            }
            status.unwrap();
        };
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(wait)
            .unwrap();
        pid
    }
}

/// The tokio runtime of one peer, and the CPU time of its threads.
pub(crate) struct PeerRuntime {
    runtime: Runtime,
    threads: Arc<Mutex<Vec<Pid>>>,
}

impl PeerRuntime {
    fn new() -> Self {
        let threads = Arc::new(Mutex::new(Vec::new()));
        let ids = Arc::clone(&threads);
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .on_thread_start(move || ids.lock().unwrap().push(gettid()))
            .build()
            .unwrap();
        Self { runtime, threads }
    }

    /// Runs a future on the calling thread, which is not a worker.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// Runs a future on a worker.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.block_on(self.runtime.spawn(future)).unwrap()
    }

    pub(crate) fn cpu_time(&self) -> Duration {
        let threads = self.threads.lock().unwrap();
        threads.iter().map(|id| cpu_time_of(*id)).sum()
    }
}
