use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;
use vmm_protocol::panic_message;

use crate::RuntimeError;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads for blocking work.
///
/// Unlike tokio's blocking pool it starts all threads at once and never adds one, so work does not
/// fail later when the process or the host has reached its limit of threads.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    /// The threads end when the last clone of this is dropped.
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts the threads.
    pub(crate) fn start(name: &str, threads: usize) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run_jobs(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `work` on the first free thread, in the order of the calls.
    ///
    /// Fails with [`RuntimeError::Panicked`] if `work` panics; the thread continues.
    ///
    /// # Cancel safety
    ///
    /// Once polled, `work` runs even if the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let (report, outcome) = oneshot::channel();
        let job = move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            // The receiver may have been dropped.
            let _ = report.send(outcome);
        };
        // The threads outlive `self`, and a job cannot end them.
        self.jobs
            .send(Box::new(job))
            .map_err(|_| RuntimeError::Closed)?;
        match outcome.await {
            Ok(outcome) => outcome.map_err(|panic| RuntimeError::Panicked {
                message: panic_message(&*panic).to_owned(),
            }),
            Err(_) => Err(RuntimeError::Closed),
        }
    }
}

fn run_jobs(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_and_the_thread_continues() {
        let workers = Workers::start("test", 1).unwrap();
        let first = workers.run(|| thread::current().id()).await.unwrap();
        let panicked: Result<(), _> = workers.run(|| panic!("for the test")).await;
        match panicked {
            Err(RuntimeError::Panicked { message }) => assert_eq!(message, "for the test"),
            other => panic!("{other:?}"),
        }
        assert_eq!(workers.run(|| thread::current().id()).await.unwrap(), first);
    }

    #[tokio::test]
    async fn work_runs_even_if_its_future_is_dropped() {
        let workers = Workers::start("test", 1).unwrap();
        let (report, ran) = channel();
        tokio::select! {
            biased;
            _ = workers.run(move || report.send(())) => {}
            () = ready(()) => {}
        }
        workers.run(|| ()).await.unwrap();
        ran.try_recv().unwrap();
    }
}
