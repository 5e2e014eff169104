use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::{Pid, gettid};

use super::{Peer, Then};
use crate::clock;
use crate::column::Column;
use crate::system;

pub(crate) const POLLING_INTERVAL: Duration = Duration::from_millis(250);

/// A thread that asks for every child in turn whether it has ended, four times a second.
pub(crate) struct PollingThread {
    id: Pid,
    pids: Arc<Mutex<Vec<u32>>>,
    /// Dropped to stop the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PollingThread {
    pub(crate) fn of(pids: Vec<u32>) -> Self {
        let pids = Arc::new(Mutex::new(pids));
        let polled = Arc::clone(&pids);
        let (stop, stopped) = mpsc::channel();
        let (tell_id, id) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell_id.send(gettid()).unwrap();
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

    pub(crate) fn cpu(&self) -> Duration {
        clock::of_thread(self.id)
    }
}

impl Peer for PollingThread {
    fn column(&self) -> Column {
        Column::Polling
    }

    #[allow(clippy::zombie_processes)]
    fn start(&self, _: Option<Then>) -> u32 {
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
