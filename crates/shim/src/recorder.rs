use std::fs::File;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{Ending, ExitRecord, FILES, Report, durable};

/// Keeps what there is to say about the end, and says it once.
#[derive(Default)]
pub(crate) struct Recorder {
    requested: AtomicBool,
    /// The pipe to the runtime, until the one report is made.
    runtime: Mutex<Option<File>>,
    /// The file for the record. Absolute, because an engine may change the directory.
    exit: OnceLock<PathBuf>,
    /// What the last panic said, and where.
    panicked: Mutex<Option<(String, Option<String>)>>,
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
        durable::reserve(&path);
        let _ = self.exit.set(path);
    }

    pub(crate) fn report(&self, report: &Report) {
        if let Some(mut runtime) = self.runtime().take()
            && let Ok(mut line) = serde_json::to_vec(report)
        {
            line.push(b'\n');
            // A runtime that is gone needs no report.
            let _ = runtime.write_all(&line);
        }
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
            *recorder.panicked() = Some(describe(info));
            if cfg!(panic = "abort") {
                recorder.end_with_panic();
            }
        }));
    }

    fn panicked(&self) -> MutexGuard<'_, Option<(String, Option<String>)>> {
        self.panicked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn end_with_panic(&self) -> ! {
        let (message, location) = self.panicked().take().unwrap_or_default();
        self.end(Ending::Panicked { message, location })
    }

    /// Records the ending, reports it if the payload never got ready, and ends the process. Of two
    /// threads the first one has its say.
    pub(crate) fn end(&self, ending: Ending) -> ! {
        let _ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let code = ending.shell_code();
        let record = ExitRecord {
            pid: process::id(),
            requested: self.is_end_requested(),
            ending,
        };
        if let Some(path) = self.exit.get()
            && let Err(error) = record.write(path)
        {
            // Not eprintln, which panics where stderr is full or broken.
            let _ = writeln!(io::stderr(), "vmm-shim: {error}");
        }
        self.report(&Report::Failed(record));
        process::exit(code)
    }
}

fn describe(info: &PanicHookInfo<'_>) -> (String, Option<String>) {
    let message = info.payload_as_str().unwrap_or("not a text").to_owned();
    (message, info.location().map(ToString::to_string))
}
