use std::env;
use std::fs::{File, TryLockError};
use std::io::{self, BufReader, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use nix::libc::SIGCHLD;
use nix::sys::prctl;
use nix::unistd::setsid;

use vmm_engine::signals::stop_ignoring;
use vmm_engine::{Engine, EngineError, Payload};
use vmm_protocol::{Ending, FILES, FailureKind, InstanceSpec, PidRecord, Report, RuntimeExited};

use crate::control::{self, Control, Watchdog};
use crate::recorder::Recorder;
use crate::standard_streams;

/// The life of the shim of one box, whose directory is the current one.
pub(crate) fn run(engines: Vec<Box<dyn Engine>>) -> ! {
    if !standard_streams::are_a_runtimes() {
        let _ = writeln!(
            io::stderr(),
            "vmm-shim: only a VMM runtime can start the shim of a box, with pipes to it"
        );
        process::exit(64); // EX_USAGE, sysexits(3)
    }
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
        .and_then(|(dir, stdin, control)| serve(recorder, &control, engines, &dir, stdin))
        .unwrap_or_else(|failure| failure)
}

/// Says who this is, before anything else can fail, and takes orders from then on.
fn begin(recorder: &Arc<Recorder>) -> Result<(PathBuf, OwnedFd, Arc<Control>), Ending> {
    let failed = |message: String| Ending::failed(FailureKind::Storage, message);
    let system = |action: &'static str| {
        move |error: io::Error| failed(format!("the shim cannot {action}: {error}"))
    };
    control::block_signals().map_err(system("block signals"))?;
    // Who ignores SIGCHLD gets no exit codes, wait(2).
    stop_ignoring([SIGCHLD]).map_err(system("restore SIGCHLD"))?;
    // What the runtime, or whoever started that, left open is none of the payload's business.
    close_fds::set_fds_cloexec(3, &[]);
    // A terminal's Ctrl-C is for the runtime. It fails for a leader of a group, which is as good.
    let _ = setsid();
    let stdout = standard_streams::take_stdout().map_err(system("take its stdout"))?;
    recorder.report_to(File::from(stdout));
    let stdin = standard_streams::take_stdin().map_err(system("take its stdin"))?;
    let dir = env::current_dir().map_err(system("find the directory of its box"))?;
    keep_others_out(&dir)?;
    recorder.record_in(&dir);
    PidRecord::of_this_process()
        .map_err(system("read its identity"))?
        .write(&dir.join(FILES.shim_pid))
        .map_err(|error| failed(error.to_string()))?;
    let control = Control::start(Arc::clone(recorder)).map_err(system("take orders"))?;
    prctl::set_child_subreaper(true)
        .map_err(io::Error::from)
        .map_err(system("become the payload's subreaper"))?;
    Ok((dir, stdin, control))
}

/// Two shims in one box would each overwrite what the other has published.
fn keep_others_out(dir: &Path) -> Result<(), Ending> {
    // Without locks, on some network file systems, that is up to the runtime alone.
    let Ok(opened) = File::open(dir) else {
        return Ok(());
    };
    if let Err(TryLockError::WouldBlock) = opened.try_lock() {
        let message = format!("another shim lives in {}", dir.display());
        return Err(Ending::failed(FailureKind::InUse, message));
    }
    // For as long as this process lives; what it executes does not inherit it.
    let _ = opened.into_raw_fd();
    Ok(())
}

fn serve(
    recorder: &Arc<Recorder>,
    control: &Control,
    engines: &[Box<dyn Engine>],
    dir: &Path,
    stdin: OwnedFd,
) -> Result<Ending, Ending> {
    let stdin = File::from(stdin);
    let (spec, runtime) = InstanceSpec::read(BufReader::new(&stdin))
        .map_err(|message| Ending::failed(FailureKind::Spec, message))?;
    let watchdog = (!spec.detached)
        .then(|| Watchdog::new(stdin.into(), runtime.as_ref()))
        .transpose()
        .map_err(|RuntimeExited| {
            let message = "the runtime exited before the payload was started";
            Ending::failed(FailureKind::Engine, message)
        })?;
    control.starting(watchdog, spec.stop_grace());
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
    let payload: Arc<dyn Payload> = engine.start(&spec, dir)?.into();
    recorder.follow(Arc::clone(&payload));
    if control.running() {
        payload.kill();
    } else if let Err(error) = commit(recorder, &*payload, dir) {
        payload.kill();
        let ended = payload.wait();
        return Err(match (error, ended) {
            // How it ended says more than that it did.
            (EngineError::EndedEarly, Ok(exit)) if recorder.is_end_requested() => exit.into(),
            (error, _) => error.into(),
        });
    }
    match payload.wait() {
        Ok(exit) => Ok(exit.into()),
        Err(error) => {
            let message = format!("the payload can no longer be followed: {error}");
            recorder.end_by_force(Ending::failed(FailureKind::Engine, message))
        }
    }
}

/// From started to ready, on record and reported.
fn commit(recorder: &Recorder, payload: &dyn Payload, dir: &Path) -> Result<(), EngineError> {
    if let Some(pid) = payload.pid() {
        let identity =
            PidRecord::of(pid).map_err(EngineError::system("read the payload's identity"))?;
        // Without one it has ended, as `wait` will tell.
        if let Some(record) = identity {
            record.write_unsynced(&dir.join(FILES.payload_pid))?;
        }
    }
    payload.wait_until_ready()?;
    let ready = Report::Ready {
        payload_pid: payload.pid(),
    };
    if recorder.report(&ready) {
        Ok(())
    } else {
        // Nobody knows of the payload: a start ends with whoever asked for it, detached or not.
        let message = "the runtime was gone before the payload was ready";
        Err(EngineError::Other(message.to_owned()))
    }
}
