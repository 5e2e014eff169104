use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::Arc;

use nix::sys::prctl;
use nix::unistd::setsid;

use vmm_engine::{Engine, EngineError, Payload};
use vmm_protocol::{
    BoxDir, Ending, FailureKind, InstanceSpec, Invocation, PidRecord, Report, RuntimeExited,
    with_causes,
};

use crate::control::{self, Control, RUNTIME_EXITED, Watchdog, WatchedRuntime};
use crate::exit_reporter::ExitReporter;
use crate::helpers::Helpers;
use crate::hub::ControlSocket;
use crate::shim::Shim;
use crate::{standard_streams, sys, warm};

/// Runs a shim, and exits the process. The current directory is the box directory, or will be.
pub(crate) fn run(invocation: &Invocation, shim: &Shim) -> ! {
    if !standard_streams::spawned_by_runtime() {
        let _ = writeln!(
            io::stderr(),
            "vmm-shim: the shim of a box must be started by a VMM runtime, with pipes as stdin and \
             stdout"
        );
        process::exit(64); // EX_USAGE, sysexits(3)
    }
    sys::use_one_heap();
    let reporter = Arc::new(ExitReporter::default());
    reporter.install_panic_hook();
    let run = AssertUnwindSafe(|| run_box(&reporter, invocation, shim));
    match panic::catch_unwind(run) {
        Ok(ending) => reporter.exit(ending),
        Err(_) => reporter.exit_with_panic(),
    }
}

fn run_box(reporter: &Arc<ExitReporter>, invocation: &Invocation, shim: &Shim) -> Ending {
    set_up(reporter, invocation)
        .and_then(|set_up| run_payload(reporter, shim, set_up))
        .unwrap_or_else(|failure| failure)
}

/// What a shim that has its box needs to run the payload.
struct SetUp {
    dir: BoxDir,
    stdin: BufReader<File>,
    control: Arc<Control>,
    /// That of a shim that was warm.
    runtime: Option<WatchedRuntime>,
}

/// Sets up the process and publishes its [`PidRecord`]. Handles requests to stop from then on; a
/// warm shim, which has no box yet, handles them earlier.
fn set_up(reporter: &Arc<ExitReporter>, invocation: &Invocation) -> Result<SetUp, Ending> {
    let (mut stdin, this) = set_up_process(reporter)?;
    let (dir, control, runtime) = match invocation {
        Invocation::Box { .. } => {
            let dir = enter_box(reporter, &this)?;
            (dir, start_control(reporter)?, None)
        }
        Invocation::Warm { .. } => {
            let control = start_control(reporter)?;
            let runtime = warm::become_shim_of_box(&mut stdin, reporter)?;
            let dir = enter_box(reporter, &this)?;
            (dir, control, Some(runtime))
        }
    };
    Ok(SetUp {
        dir,
        stdin,
        control,
        runtime,
    })
}

/// Sets up what does not depend on the box. Returns stdin and the record of this process.
fn set_up_process(reporter: &ExitReporter) -> Result<(BufReader<File>, PidRecord), Ending> {
    // In process lists: the runtime may have executed a descriptor, whose number is then the name.
    let _ = prctl::set_name(c"vmm-shim");
    control::block_signals().map_err(system_error("block signals"))?;
    // A process that ignores SIGCHLD cannot get the exit statuses of its children, wait(2).
    sys::reset_sigchld().map_err(system_error("reset SIGCHLD"))?;
    // The payload must not inherit descriptors that the runtime has left open.
    close_fds::set_fds_cloexec(3, &[]);
    // Ctrl-C in a terminal must reach only the runtime. The call fails for a process group leader,
    // which Ctrl-C does not reach either.
    let _ = setsid();
    let stdout = standard_streams::take_stdout().map_err(system_error("take its stdout"))?;
    reporter.set_runtime(File::from(stdout));
    if has_other_threads() {
        return Err(Ending::failed(FailureKind::Engine, OTHER_THREADS));
    }
    let stdin = standard_streams::take_stdin().map_err(system_error("take its stdin"))?;
    let this = PidRecord::of_this_process().map_err(system_error("read its process identity"))?;
    prctl::set_child_subreaper(true)
        .map_err(io::Error::from)
        .map_err(system_error("become the subreaper of the payload"))?;
    Ok((BufReader::new(File::from(stdin)), this))
}

/// Takes the box whose directory is the current directory, and publishes the record of this process.
fn enter_box(reporter: &ExitReporter, this: &PidRecord) -> Result<BoxDir, Ending> {
    let dir = env::current_dir().map_err(system_error("find the box directory"))?;
    let dir = BoxDir::new(dir);
    lock_box_dir(&dir)?;
    reporter.set_box_dir(dir.clone());
    dir.write_shim_record(this)
        .map_err(|error| Ending::failed(FailureKind::Storage, with_causes(&error)))?;
    Ok(dir)
}

fn start_control(reporter: &Arc<ExitReporter>) -> Result<Arc<Control>, Ending> {
    Control::start(Arc::clone(reporter)).map_err(system_error("start its control thread"))
}

/// Returns a function that converts the error of `action`.
pub(crate) fn system_error(action: &'static str) -> impl FnOnce(io::Error) -> Ending {
    move |error| {
        let message = format!("the shim cannot {action}: {error}");
        Ending::failed(FailureKind::Storage, message)
    }
}

/// The kernel could deliver a signal for the shim to any thread, and so end it.
const OTHER_THREADS: &str = "this program has started threads before it called run_if_shim(), \
    for example because its main has the attribute #[tokio::main]; call it first in a main without \
    that attribute, and start tokio after it: fn main() { vmm_shim::run_if_shim(); \
    tokio::runtime::Runtime::new().unwrap().block_on(run()) }";

/// Returns false also if this cannot be determined.
fn has_other_threads() -> bool {
    // The directory has a link for itself, one for its parent, and one per thread.
    fs::metadata("/proc/self/task").is_ok_and(|threads| threads.nlink() > 3)
}

/// Locks the box directory. Two shims in one box would overwrite each other's files.
fn lock_box_dir(dir: &BoxDir) -> Result<(), Ending> {
    // Some network file systems have no locks. Only the runtime excludes a second shim there.
    let Ok(file) = File::open(dir.path()) else {
        return Ok(());
    };
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        let message = format!("another shim already runs in {}", dir.path().display());
        return Err(Ending::failed(FailureKind::InUse, message));
    }
    // The lock is held until this process exits. Its children do not inherit the descriptor.
    let _ = file.into_raw_fd();
    Ok(())
}

/// Reads the spec, starts the payload, and waits until it has ended.
fn run_payload(
    reporter: &Arc<ExitReporter>,
    shim: &Shim,
    SetUp {
        dir,
        mut stdin,
        control,
        runtime: watched,
    }: SetUp,
) -> Result<Ending, Ending> {
    let (spec, runtime) = InstanceSpec::read(&mut stdin)
        .map_err(|message| Ending::failed(FailureKind::Spec, message))?;
    if spec.detached {
        reporter.set_detached();
    }
    let runtime = match (watched, runtime) {
        (Some(watched), Some(runtime)) => Some(watched.or_of(runtime)),
        (None, Some(runtime)) => Some(WatchedRuntime::of(runtime)),
        (_, None) => None,
    };
    let runtime = runtime.transpose().map_err(|RuntimeExited| {
        let message = "the runtime exited before the payload was started";
        Ending::failed(FailureKind::Engine, message)
    })?;
    let watchdog = if spec.detached {
        let pipe = reporter
            .clone_pipe()
            .map_err(system_error("watch its runtime"))?;
        pipe.map(|pipe| Watchdog::detached(pipe, runtime))
    } else {
        Some(Watchdog::attached(stdin.into_inner().into(), runtime))
    };
    control.begin_start(watchdog, bind_control_socket(), spec.stop_grace());
    let engine = find_engine(shim, &spec.payload.engine)?;
    engine.validate(&spec.payload, &spec.policy)?;
    let payload: Arc<dyn Payload> = engine.start(&spec, dir.path())?.into();
    reporter.set_payload(Arc::clone(&payload));
    if let Some(pause) = payload.pause() {
        let reporter = Arc::clone(reporter);
        pause.observe(Box::new(move |is_paused| reporter.record_paused(is_paused)));
    }
    let helpers = Helpers::start(&*payload, &dir, reporter);
    let is_end_requested = control.payload_started();
    let helpers = match helpers {
        Ok(helpers) => helpers,
        Err(error) => {
            payload.kill();
            let _ = payload.wait();
            return Err(error.into());
        }
    };
    let helper_count = helpers.as_ref().map_or(0, Helpers::count);
    let end_of_helper = || helpers.and_then(Helpers::finish);
    if is_end_requested {
        payload.kill();
    } else if let Err(error) = await_ready(reporter, &*payload, helper_count, &dir) {
        if !matches!(error, EngineError::EndedEarly) {
            payload.kill();
        }
        let exit = payload.wait();
        return Err(match (error, exit) {
            (EngineError::EndedEarly, Ok(exit)) => {
                let ending = end_of_helper().unwrap_or_else(|| exit.into());
                // If the end was requested, the exit is more informative than the failed start.
                if reporter.is_end_requested() {
                    ending
                } else {
                    Ending::ended_early(ending)
                }
            }
            (error, _) => error.into(),
        });
    }
    // The start needs more memory than all that follows.
    sys::release_free_memory();
    match payload.wait() {
        Ok(exit) => {
            control.finish_hub();
            let exit = Ending::from(exit);
            // A payload that has succeeded did not need the helper any more.
            let of_helper = end_of_helper().filter(|_| exit.shell_code() != 0);
            Ok(of_helper.unwrap_or(exit))
        }
        Err(error) => {
            let message = format!("cannot wait for the payload any more: {error}");
            reporter.kill_and_exit(Ending::failed(FailureKind::Engine, message))
        }
    }
}

/// Binds the socket for clients. Without it, the payload runs all the same.
fn bind_control_socket() -> Option<ControlSocket> {
    match ControlSocket::bind() {
        Ok(socket) => Some(socket),
        Err(error) => {
            let _ = writeln!(io::stderr(), "vmm-shim: cannot serve clients: {error}");
            None
        }
    }
}

fn find_engine<'a>(shim: &'a Shim, name: &str) -> Result<&'a dyn Engine, Ending> {
    shim.find(name).ok_or_else(|| {
        let names: Vec<_> = shim.names().collect();
        let message = format!(
            "unknown engine {name:?}: this shim has {}",
            names.join(", ")
        );
        Ending::failed(FailureKind::UnknownEngine, message)
    })
}

/// Records the pid of the payload, waits until the payload is ready, and reports that to the
/// runtime.
fn await_ready(
    reporter: &ExitReporter,
    payload: &dyn Payload,
    helpers: u32,
    dir: &BoxDir,
) -> Result<(), EngineError> {
    if let Some(pid) = payload.pid() {
        let record =
            PidRecord::of(pid).map_err(EngineError::system("read the payload's identity"))?;
        // There is no record if the payload has already exited. `wait` then returns how.
        if let Some(record) = record {
            dir.write_payload_record(&record)?;
        }
    }
    payload.wait_until_ready()?;
    let ready = Report::Ready {
        payload_pid: payload.pid(),
        boot: payload.boot_times(),
        helpers,
        unapplied_rules: payload.unapplied_rules(),
    };
    if reporter.report(&ready) {
        Ok(())
    } else {
        // A start ends with the runtime that requested it, even if the shim is detached: no other
        // runtime knows about the payload.
        Err(EngineError::Other(RUNTIME_EXITED.to_owned()))
    }
}
