use std::env;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc::SIGCHLD;
use nix::sys::prctl;
use nix::unistd::setsid;

use crate::control::{self, Control};
use crate::ignored_signals::stop_ignoring;
use crate::recorder::Recorder;
use crate::{
    Ending, Engine, EngineError, FILES, FailureKind, InstanceSpec, Payload, PidRecord, Report,
    standard_streams,
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
        .and_then(|(dir, stdin, control)| serve(recorder, &control, engines, &dir, stdin))
        .unwrap_or_else(|failure| failure)
}

/// Says who this is, before anything else can fail, and takes orders from then on.
fn begin(recorder: &Arc<Recorder>) -> Result<(PathBuf, OwnedFd, Arc<Control>), String> {
    let system =
        |action: &'static str| move |error: io::Error| format!("the shim cannot {action}: {error}");
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
    recorder.record_in(&dir);
    PidRecord::of_this_process()
        .map_err(system("read its identity"))?
        .write(&dir.join(FILES.shim_pid))
        .map_err(|error| error.to_string())?;
    let control = Control::start(Arc::clone(recorder)).map_err(system("take orders"))?;
    prctl::set_child_subreaper(true)
        .map_err(io::Error::from)
        .map_err(system("become the payload's subreaper"))?;
    Ok((dir, stdin, control))
}

fn serve(
    recorder: &Arc<Recorder>,
    control: &Control,
    engines: &[Box<dyn Engine>],
    dir: &Path,
    stdin: OwnedFd,
) -> Result<Ending, Ending> {
    let stdin = File::from(stdin);
    let spec = InstanceSpec::read(BufReader::new(&stdin))
        .map_err(|message| Ending::failed(FailureKind::Spec, message))?;
    let watchdog = (!spec.detached).then(|| OwnedFd::from(stdin));
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
            record.write_of_payload(&dir.join(FILES.payload_pid))?;
        }
    }
    payload.wait_until_ready()?;
    recorder.report(&Report::Ready {
        payload_pid: payload.pid(),
    });
    Ok(())
}
