//! A program with its own engines that is its own shim. It has no test harness, because a shim must
//! take over in `main`.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

#[macro_use]
mod support;

use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use std::{env, fs, io, thread};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use support::{LOOP, Shim, eventually, is_running, sh, spec};
use vmm_shim::stop_signal::value_of_grace;
use vmm_shim::{
    Ending, Engine, EngineError, FILES, InstanceSpec, KILL_SIGNAL, Payload, PayloadExit, Process,
    Report,
};

/// Starts an orphan, and then waits for a file `go` before it starts the payload.
struct Slow;

impl Engine for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let orphan = Command::new("sleep").arg("1000").spawn().unwrap();
        vmm_shim::write_file(&dir.join("orphan"), orphan.id().to_string().as_bytes())?;
        while !dir.join("go").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        Process.start(spec, dir)
    }
}

/// Its payload hangs in every call.
struct Hanging;

impl Engine for Hanging {
    fn name(&self) -> &str {
        "hanging"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self))
    }
}

impl Payload for Hanging {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self, _grace: Duration) {
        hang()
    }

    fn kill(&self) {
        hang()
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        hang()
    }
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

/// Lowers the limit of file descriptors until `poll(2)` fails.
struct FewDescriptors;

impl Engine for FewDescriptors {
    fn name(&self) -> &str {
        "few-descriptors"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 1, hard).unwrap();
        Ok(Box::new(Hanging))
    }
}

/// Changes the current directory.
struct ChangesDirectory;

impl Engine for ChangesDirectory {
    fn name(&self) -> &str {
        "changes-directory"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        env::set_current_dir("/").unwrap();
        Process.start(spec, dir)
    }
}

/// Panics in `wait` while its payload is running. Afterwards, one of its threads panics, too.
struct Panicking(Option<Box<dyn Payload>>);

impl Engine for Panicking {
    fn name(&self) -> &str {
        "panicking"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self(Some(Process.start(spec, dir)?))))
    }
}

impl Payload for Panicking {
    fn pid(&self) -> Option<u32> {
        self.0.as_ref().and_then(|payload| payload.pid())
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self, _grace: Duration) {}

    fn kill(&self) {
        fs::write("killed", "").unwrap();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        let _guard = PanicInThread;
        panic!("this panic ends the shim");
    }
}

struct PanicInThread;

impl Drop for PanicInThread {
    fn drop(&mut self) {
        let _ = thread::spawn(|| panic!("this panic does not")).join();
    }
}

/// Exits when it is asked to stop, with the seconds of its grace period as the code.
#[derive(Default)]
struct ExitsWithGrace {
    grace: Mutex<Option<Duration>>,
    stopped: Condvar,
}

impl Engine for ExitsWithGrace {
    fn name(&self) -> &str {
        "exits-with-grace"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self::default()))
    }
}

impl Payload for ExitsWithGrace {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self, grace: Duration) {
        *self.grace.lock().unwrap() = Some(grace);
        self.stopped.notify_all();
    }

    fn kill(&self) {}

    fn wait(&self) -> io::Result<PayloadExit> {
        let grace = self.grace.lock().unwrap();
        let grace = self.stopped.wait_while(grace, |grace| grace.is_none());
        let seconds = grace.unwrap().unwrap().as_secs();
        Ok(PayloadExit::Code(seconds.try_into().unwrap()))
    }
}

/// Starts a shim with this engine and grace period.
fn start_on(engine: &str, grace: Duration) -> Shim {
    let mut payload = sh(&format!("echo started; {LOOP}"));
    payload.engine = engine.to_owned();
    let spec = InstanceSpec {
        stop_grace_ms: grace.as_millis().try_into().unwrap(),
        ..spec(payload)
    };
    Shim::with_input(&spec.to_line().unwrap())
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// Waits until [`Slow`] has started an orphan, and returns the pid.
fn orphan(shim: &Shim) -> u32 {
    let path = shim.path("orphan");
    eventually("an orphan", || path.exists());
    fs::read_to_string(path).unwrap().parse().unwrap()
}

fn a_signal_during_a_start_ends_the_payload_afterwards() {
    for signal in [Signal::SIGTERM, KILL_SIGNAL] {
        let mut shim = start_on("slow", LONG);
        let orphan = orphan(&shim);
        shim.signal(signal);
        fs::write(shim.path("go"), "").unwrap();
        shim.wait();
        assert!(shim.record().requested);
        let ending = shim.record().ending;
        assert!(matches!(ending, Ending::Signaled { .. }), "{ending:?}");
        assert!(!is_running(orphan));
    }
}

fn a_start_that_exceeds_the_grace_period_is_killed() {
    let mut shim = start_on("slow", SHORT);
    let orphan = orphan(&shim);
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
    assert!(shim.record().requested);
    assert!(!is_running(orphan));
    assert_eq!(shim.report(), Report::Failed(shim.record()));
}

fn a_hanging_payload_does_not_outlive_the_watchdog() {
    let mut shim = start_on("hanging", SHORT);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
}

fn a_payload_learns_how_long_it_may_take_to_stop() {
    let mut shim = start_on("exits-with-grace", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(60));
}

/// Sends SIGTERM with a grace period, as a runtime does. The shim is not reaped, so its pid is its own.
fn request_stop(shim: &Shim, grace: Duration) {
    let value = usize::try_from(value_of_grace(grace)).unwrap();
    let value = libc::sigval {
        sival_ptr: ptr::without_provenance_mut(value),
    };
    let pid = shim.child.id().cast_signed();
    // SAFETY: takes integers and touches no memory of this process.
    assert_eq!(unsafe { libc::sigqueue(pid, libc::SIGTERM, value) }, 0);
}

fn a_request_to_stop_can_have_another_grace_period() {
    let mut shim = start_on("exits-with-grace", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    request_stop(&shim, Duration::from_secs(7));
    assert_eq!(shim.wait().code(), Some(7));
}

fn a_start_that_exceeds_the_grace_period_of_a_request_is_killed() {
    let mut shim = start_on("slow", LONG * 60);
    let orphan = orphan(&shim);
    request_stop(&shim, SHORT);
    assert_eq!(shim.wait().code(), Some(137));
    assert!(!is_running(orphan));
}

fn a_shim_that_cannot_handle_signals_exits() {
    let mut shim = start_on("few-descriptors", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(125));
}

fn repeated_kill_signals_do_not_postpone_the_exit() {
    let mut shim = start_on("hanging", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    eventually("the exit of the shim", || {
        shim.signal(KILL_SIGNAL);
        thread::sleep(Duration::from_millis(100));
        shim.child.try_wait().unwrap().is_some()
    });
    assert_eq!(shim.wait().code(), Some(137));
}

fn a_changed_directory_does_not_misplace_the_exit_record() {
    let mut shim = start_on("changes-directory", LONG);
    shim.eventually_prints("started");
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert!(shim.path(FILES.exit).exists());
}

fn the_first_panic_ends_the_payload_and_is_recorded() {
    let mut shim = start_on("panicking", LONG);
    let payload = match shim.report() {
        Report::Ready { payload_pid, .. } => payload_pid.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shim.wait().code(), Some(101));
    assert!(!is_running(payload) && shim.path("killed").exists());
    match shim.record().ending {
        Ending::Panicked { message, .. } => assert_eq!(message, "this panic ends the shim"),
        other => panic!("{other:?}"),
    }
}

fn main() {
    vmm_shim::Shim::new()
        .engine(Slow)
        .engine(Hanging)
        .engine(FewDescriptors)
        .engine(ChangesDirectory)
        .engine(Panicking(None))
        .engine(ExitsWithGrace::default())
        .run_if_shim();
    run![
        a_signal_during_a_start_ends_the_payload_afterwards,
        a_start_that_exceeds_the_grace_period_is_killed,
        a_hanging_payload_does_not_outlive_the_watchdog,
        a_payload_learns_how_long_it_may_take_to_stop,
        a_request_to_stop_can_have_another_grace_period,
        a_start_that_exceeds_the_grace_period_of_a_request_is_killed,
        a_shim_that_cannot_handle_signals_exits,
        repeated_kill_signals_do_not_postpone_the_exit,
        a_changed_directory_does_not_misplace_the_exit_record,
        the_first_panic_ends_the_payload_and_is_recorded,
    ];
}
