use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use vmm_engine::{Payload, descendants};
use vmm_protocol::{ControlGroup, Ending, ExitRecord, FILES, Report};

/// How long the payload may take over an order, where an end waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A panic's message, and `file:line:column`.
type Panic = (String, Option<String>);

thread_local! {
    /// The last one of this thread.
    static PANIC: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Keeps what there is to say about the end, and says it once, when nothing of the payload runs.
#[derive(Default)]
pub(crate) struct Recorder {
    requested: AtomicBool,
    /// The pipe to the runtime, until the one report is made.
    runtime: Mutex<Option<File>>,
    /// The file for the record. Absolute, because an engine may change the directory.
    exit: OnceLock<PathBuf>,
    payload: OnceLock<Arc<dyn Payload>>,
    ended: Mutex<()>,
}

impl Recorder {
    fn runtime(&self) -> MutexGuard<'_, Option<File>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report_to(&self, runtime: File) {
        *self.runtime() = Some(runtime);
    }

    /// From now on the end is put on record in `dir`; until now it is only reported.
    pub(crate) fn record_in(&self, dir: &Path) {
        let path = dir.join(FILES.exit);
        // The payload's console may fill the disk.
        vmm_protocol::reserve_space(&path);
        let _ = self.exit.set(path);
    }

    /// False if nobody is there to hear it.
    pub(crate) fn report(&self, report: &Report) -> bool {
        let Some(mut runtime) = self.runtime().take() else {
            return false;
        };
        let Ok(mut line) = serde_json::to_vec(report) else {
            return false;
        };
        line.push(b'\n');
        runtime.write_all(&line).is_ok()
    }

    pub(crate) fn end_was_requested(&self) {
        self.requested.store(true, Ordering::Release);
    }

    pub(crate) fn is_end_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    pub(crate) fn record_panics(self: &Arc<Self>) {
        let recorder = Arc::clone(self);
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            print(info);
            // Without a slot any more, the thread is about to end.
            let _ = PANIC.try_with(|slot| slot.replace(Some(describe(info))));
            if cfg!(panic = "abort") {
                recorder.end_with_panic();
            }
        }));
    }

    /// To be killed before the end is on record.
    pub(crate) fn follow(&self, payload: Arc<dyn Payload>) {
        let _ = self.payload.set(payload);
    }

    /// Calls the payload, if there is one, in a thread of its own: it may hang, and it may panic,
    /// which ends the shim. The channel closes when it has done neither.
    pub(crate) fn order(self: &Arc<Self>, order: fn(&dyn Payload)) -> Receiver<()> {
        let (done, receiver) = mpsc::channel();
        if let Some(payload) = self.payload.get() {
            let (recorder, payload) = (Arc::clone(self), Arc::clone(payload));
            let run = move || {
                let _done = done;
                if panic::catch_unwind(AssertUnwindSafe(|| order(&*payload))).is_err() {
                    recorder.end_with_panic();
                }
            };
            let thread = thread::Builder::new().name("shim-order".to_owned());
            if thread.spawn(run).is_err()
                && let Some(payload) = self.payload.get()
            {
                // Rather at this thread's risk than not at all.
                order(&**payload);
            }
        }
        receiver
    }

    /// Of the panic of this thread.
    pub(crate) fn end_with_panic(self: &Arc<Self>) -> ! {
        let panic = PANIC.try_with(RefCell::take).ok().flatten();
        let (message, location) = panic.unwrap_or_default();
        self.end_by_force(Ending::Panicked { message, location })
    }

    /// [`end`](Self::end), where the payload may still run.
    pub(crate) fn end_by_force(self: &Arc<Self>, ending: Ending) -> ! {
        // First of all, lest another thread records how the payload ended of this.
        let ended = self.ended();
        let _ = self.order(|payload| payload.kill()).recv_timeout(PATIENCE);
        self.publish(ended, ending)
    }

    /// Records the ending, reports it if the payload never got ready, and ends the process. Of two
    /// threads the first one has its say.
    pub(crate) fn end(&self, ending: Ending) -> ! {
        self.publish(self.ended(), ending)
    }

    fn ended(&self) -> MutexGuard<'_, ()> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, _ended: MutexGuard<'_, ()>, ending: Ending) -> ! {
        descendants::kill_all_except(None);
        if let Some(Err(error)) = ControlGroup::of_this_process().map(ControlGroup::remove) {
            // The runtime finds what is left.
            let _ = writeln!(io::stderr(), "vmm-shim: {error}");
        }
        let ending = ending.truncated();
        let code = ending.shell_code();
        let record = ExitRecord {
            pid: process::id(),
            requested: self.is_end_requested(),
            ending,
        };
        let on_record = match (self.exit.get(), &record.ending) {
            (Some(path), _) => record.write(path).map_err(|error| error.to_string()),
            (None, Ending::Failed { message, .. }) => Err(message.clone()),
            (None, _) => Ok(()),
        };
        if let Err(message) = on_record {
            // Not eprintln, which panics where stderr is full or broken.
            let _ = writeln!(io::stderr(), "vmm-shim: {message}");
        }
        self.report(&Report::Failed(record));
        process::exit(code)
    }
}

fn describe(info: &PanicHookInfo<'_>) -> Panic {
    let message = info.payload_as_str().unwrap_or("not a text").to_owned();
    (message, info.location().map(ToString::to_string))
}
