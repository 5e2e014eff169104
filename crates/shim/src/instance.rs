use std::env;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::setsid;

use crate::control::{self, Control};
use crate::{
    Ending, Engine, EngineError, ExitRecord, FILES, FailureKind, InstanceSpec, Payload, PidRecord,
    Report, standard_streams,
};

/// The life of the shim of one box, whose directory is the current one.
pub(crate) fn run(engines: Vec<Box<dyn Engine>>) -> ! {
    let recorder = Arc::new(Recorder::default());
    recorder.record_panics();
    let lived = panic::catch_unwind(AssertUnwindSafe(|| live(&recorder, &engines)));
    match lived {
        Ok(ending) => recorder.end(ending),
        Err(_) => recorder.end_with_panic(),
    }
}

fn live(recorder: &Arc<Recorder>, engines: &[Box<dyn Engine>]) -> Ending {
    begin(recorder)
        .map_err(|message| Ending::failed(FailureKind::Storage, message))
        .and_then(|(dir, stdin)| serve(recorder, engines, &dir, stdin))
        .unwrap_or_else(|failure| failure)
}

/// Says who this is, before anything else can fail.
fn begin(recorder: &Recorder) -> Result<(PathBuf, OwnedFd), String> {
    let system =
        |action: &'static str| move |error: io::Error| format!("the shim cannot {action}: {error}");
    control::block_signals().map_err(system("block signals"))?;
    // What the runtime, or whoever started that, left open is none of the payload's business.
    close_fds::set_fds_cloexec(3, &[]);
    // A terminal's Ctrl-C is for the runtime. It fails for a leader of a group, which is as good.
    let _ = setsid();
    let stdout = standard_streams::take_stdout().map_err(system("take its stdout"))?;
    *recorder.runtime() = Some(File::from(stdout));
    let stdin = standard_streams::take_stdin().map_err(system("take its stdin"))?;
    let dir = env::current_dir().map_err(system("find the directory of its box"))?;
    PidRecord::of_this_process()
        .map_err(system("read its identity"))?
        .write(&dir.join(FILES.shim_pid))
        .map_err(|error| error.to_string())?;
    Ok((dir, stdin))
}

fn serve(
    recorder: &Arc<Recorder>,
    engines: &[Box<dyn Engine>],
    dir: &Path,
    stdin: OwnedFd,
) -> Result<Ending, Ending> {
    let stdin = File::from(stdin);
    let spec = InstanceSpec::read(BufReader::new(&stdin))
        .map_err(|message| Ending::failed(FailureKind::Spec, message))?;
    let wanted = spec.payload.engine.as_str();
    let engine = engines
        .iter()
        .rev()
        .find(|engine| engine.name() == wanted)
        .ok_or_else(|| {
            let known: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
            let message = format!("no engine is named {wanted:?}; known: {}", known.join(", "));
            Ending::failed(FailureKind::UnknownEngine, message)
        })?;
    let watchdog = (!spec.detached).then(|| (OwnedFd::from(stdin), spec.stop_grace()));
    let control = Control::start(Arc::clone(recorder), watchdog)
        .map_err(EngineError::system("start the control thread"))?;
    let payload: Arc<dyn Payload> = engine.start(&spec, dir)?.into();
    control.command(Arc::clone(&payload));
    if let Err(error) = commit(recorder, &*payload, dir) {
        payload.kill();
        let ended = payload.wait();
        return Err(match (error, ended) {
            // How it ended says more than that it did.
            (EngineError::EndedEarly, Ok(exit)) if recorder.is_end_requested() => exit.into(),
            (error, _) => error.into(),
        });
    }
    payload.wait().map(Ending::from).map_err(|error| {
        payload.kill();
        let message = format!("the payload can no longer be followed: {error}");
        Ending::failed(FailureKind::Engine, message)
    })
}

/// From started to ready, on record and reported.
fn commit(recorder: &Recorder, payload: &dyn Payload, dir: &Path) -> Result<(), EngineError> {
    payload.wait_until_ready()?;
    if let Some(pid) = payload.pid() {
        let identity =
            PidRecord::of(pid).map_err(EngineError::system("read the payload's identity"))?;
        // Without one it has ended, as `wait` will tell.
        if let Some(record) = identity {
            record.write(&dir.join(FILES.payload_pid))?;
        }
    }
    recorder.report(&Report::Ready {
        payload_pid: payload.pid(),
    });
    Ok(())
}

/// Keeps what there is to say about the end, and says it once.
#[derive(Default)]
pub(crate) struct Recorder {
    requested: AtomicBool,
    /// The pipe to the runtime, until the one report is made.
    runtime: Mutex<Option<File>>,
    /// What the last panic said, and where.
    panicked: Mutex<Option<(String, Option<String>)>>,
    ended: Mutex<()>,
}

impl Recorder {
    fn runtime(&self) -> MutexGuard<'_, Option<File>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, report: &Report) {
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

    fn is_end_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn record_panics(self: &Arc<Self>) {
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
        if let Err(error) = record.write(Path::new(FILES.exit)) {
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
