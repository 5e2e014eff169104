use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use vmm_engine::{Payload, descendants};
use vmm_protocol::frames::{RequestError, RequestErrorKind};
use vmm_protocol::{
    BoxDir, ControlGroup, Ending, ExitRecord, Report, panic_message, to_line, with_causes,
};

/// How long [`ExitReporter::kill_and_exit`] waits for [`Payload::kill`] to return.
const KILL_CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The message of a panic, and its place as `file:line:column`.
type Panic = (String, Option<String>);

thread_local! {
    /// The last panic of this thread.
    static LAST_PANIC: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Records and reports how the shim ends, exactly once, and exits the process.
#[derive(Default)]
pub(crate) struct ExitReporter {
    is_end_requested: AtomicBool,
    /// The pipe to the runtime, until the shim has sent its report.
    runtime: Mutex<Option<File>>,
    /// Has an absolute path, because an engine may change the current directory.
    box_dir: OnceLock<BoxDir>,
    payload: OnceLock<Arc<dyn Payload>>,
    /// Whether no runtime may be there to save how the shim ends.
    is_detached: AtomicBool,
    /// Locked for good by the first thread that ends the shim.
    exit_lock: Mutex<()>,
}

impl ExitReporter {
    fn runtime(&self) -> MutexGuard<'_, Option<File>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the pipe to the runtime.
    pub(crate) fn set_runtime(&self, pipe: File) {
        *self.runtime() = Some(pipe);
    }

    /// Returns another descriptor of the pipe to the runtime, until the shim has sent its report.
    pub(crate) fn clone_pipe(&self) -> io::Result<Option<OwnedFd>> {
        let runtime = self.runtime();
        let cloned = runtime
            .as_ref()
            .map(|pipe| pipe.as_fd().try_clone_to_owned());
        cloned.transpose()
    }

    /// Returns whether the shim has sent its report, or sends it.
    pub(crate) fn has_reported(&self) -> bool {
        self.runtime().is_none()
    }

    /// Sets the box directory. Before this call, an ending is only reported, and not recorded.
    pub(crate) fn set_box_dir(&self, dir: BoxDir) {
        dir.reserve_exit_record();
        let _ = self.box_dir.set(dir);
    }

    /// Reports to the runtime that this warm shim has taken its box.
    pub(crate) fn report_taken(&self) {
        if let Some(pipe) = &mut *self.runtime() {
            let _ = send(pipe, &Report::Taken);
        }
    }

    /// Sends the last report to the runtime. Returns false if the runtime does not receive it.
    pub(crate) fn report(&self, report: &Report) -> bool {
        let pipe = self.runtime().take();
        pipe.is_some_and(|mut pipe| send(&mut pipe, report).is_ok())
    }

    /// Marks the end of the shim as requested.
    pub(crate) fn mark_end_requested(&self) {
        self.is_end_requested.store(true, Ordering::Release);
    }

    pub(crate) fn is_end_requested(&self) -> bool {
        self.is_end_requested.load(Ordering::Acquire)
    }

    /// Installs a panic hook that keeps the message for [`exit_with_panic`](Self::exit_with_panic).
    pub(crate) fn install_panic_hook(self: &Arc<Self>) {
        let reporter = Arc::clone(self);
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            print(info);
            // Fails if the thread is exiting and has destroyed its thread-local values.
            let _ = LAST_PANIC.try_with(|slot| slot.replace(Some(describe(info))));
            if cfg!(panic = "abort") {
                reporter.exit_with_panic();
            }
        }));
    }

    /// Makes [`exit`](Self::exit) sync the exit record to disk.
    pub(crate) fn set_detached(&self) {
        self.is_detached.store(true, Ordering::Release);
    }

    /// Sets the payload, which [`kill_and_exit`](Self::kill_and_exit) kills.
    pub(crate) fn set_payload(&self, payload: Arc<dyn Payload>) {
        let _ = self.payload.set(payload);
    }

    /// Returns the payload, or the error of a request before the payload has been started.
    pub(crate) fn started_payload(&self) -> Result<&dyn Payload, RequestError> {
        let payload = self.payload.get().map(|payload| &**payload);
        let message = "the payload is not started yet; wait until the box is running";
        payload.ok_or_else(|| RequestError::new(RequestErrorKind::NotReady, message))
    }

    /// Records in the box directory whether the payload is paused.
    pub(crate) fn record_paused(&self, paused: bool) {
        if let Some(dir) = self.box_dir.get()
            && let Err(error) = dir.write_paused(paused)
        {
            // The kernel knows of frozen processes all the same, though not of a paused guest.
            let _ = writeln!(io::stderr(), "vmm-shim: {}", with_causes(&error));
        }
    }

    /// Calls the payload, if there is one, in a new thread, because the call may hang. The channel
    /// closes when the call returns. A panic in the call ends the shim.
    pub(crate) fn call_payload(
        self: &Arc<Self>,
        call: impl Fn(&dyn Payload) + Send + Copy + 'static,
    ) -> Receiver<()> {
        let (done, receiver) = mpsc::channel();
        if let Some(payload) = self.payload.get() {
            let (reporter, payload) = (Arc::clone(self), Arc::clone(payload));
            let run = move || {
                let _done = done;
                if panic::catch_unwind(AssertUnwindSafe(|| call(&*payload))).is_err() {
                    reporter.exit_with_panic();
                }
            };
            let thread = thread::Builder::new().name("shim-call".to_owned());
            if thread.spawn(run).is_err()
                && let Some(payload) = self.payload.get()
            {
                // Without a new thread, the call may block this one.
                call(&**payload);
            }
        }
        receiver
    }

    /// Ends the shim because of a panic in the calling thread.
    pub(crate) fn exit_with_panic(self: &Arc<Self>) -> ! {
        let panic = LAST_PANIC.try_with(RefCell::take).ok().flatten();
        let (message, location) = panic.unwrap_or_default();
        self.kill_and_exit(Ending::Panicked { message, location })
    }

    /// Kills the payload, which may still run, and ends the shim.
    pub(crate) fn kill_and_exit(self: &Arc<Self>, ending: Ending) -> ! {
        // Locked before the kill: the main thread would otherwise record that the payload was
        // killed.
        let exit_lock = self.lock_exit();
        let _ = self
            .call_payload(|payload| payload.kill())
            .recv_timeout(KILL_CALL_TIMEOUT);
        self.finish(exit_lock, ending)
    }

    /// Ends the shim: records the ending, reports it unless the payload became ready, and exits the
    /// process. If several threads call this, the first one wins.
    pub(crate) fn exit(&self, ending: Ending) -> ! {
        self.finish(self.lock_exit(), ending)
    }

    fn lock_exit(&self) -> MutexGuard<'_, ()> {
        self.exit_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, _exit_lock: MutexGuard<'_, ()>, ending: Ending) -> ! {
        descendants::kill_all_except(None, |_, _| {});
        if let Some(Err(error)) = ControlGroup::of_this_process().map(|group| group.remove()) {
            // The runtime tries again.
            let _ = writeln!(io::stderr(), "vmm-shim: {}", with_causes(&error));
        }
        let ending = ending.truncated();
        let code = ending.shell_code();
        let record = ExitRecord {
            pid: process::id(),
            requested: self.is_end_requested(),
            ending,
        };
        let recorded = match (self.box_dir.get(), &record.ending) {
            (Some(dir), _) => {
                let recorded = if self.is_detached.load(Ordering::Acquire) {
                    dir.write_exit_record(&record)
                } else {
                    dir.write_exit_record_unsynced(&record)
                };
                recorded.map_err(|error| with_causes(&error))
            }
            (None, Ending::Failed { message, .. }) => Err(message.clone()),
            (None, _) => Ok(()),
        };
        if let Err(message) = recorded {
            // Not `eprintln`, which panics if stderr is full or closed.
            let _ = writeln!(io::stderr(), "vmm-shim: {message}");
        }
        if let Some(dir) = self.box_dir.get() {
            let _ = dir.delete_transient_files();
        }
        self.report(&Report::Failed(record));
        process::exit(code)
    }
}

/// Writes a report as one line, which arrives as a whole.
fn send(pipe: &mut File, report: &Report) -> io::Result<()> {
    pipe.write_all(&to_line(report)?)
}

fn describe(info: &PanicHookInfo<'_>) -> Panic {
    let message = panic_message(info.payload()).to_owned();
    (message, info.location().map(ToString::to_string))
}
