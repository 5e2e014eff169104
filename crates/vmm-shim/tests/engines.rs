//! A program with engines of its own, which is its own shim. It has no harness, because a shim has
//! to take over in `main`.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io, thread};

use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{LOOP, Shim, eventually, runs, sh, spec};
use vmm_shim::{
    Ending, Engine, EngineError, FILES, InstanceSpec, KILL_SIGNAL, Payload, PayloadExit, Process,
    Report,
};

/// Starts a stray process first, and then takes until there is a file `go`.
struct Slow;

impl Engine for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let stray = Command::new("sleep").arg("1000").spawn().unwrap();
        vmm_shim::write_file(&dir.join("stray"), stray.id().to_string().as_bytes())?;
        while !dir.join("go").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        Process.start(spec, dir)
    }
}

/// Its payload never returns from anything.
struct Deaf;

impl Engine for Deaf {
    fn name(&self) -> &str {
        "deaf"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self))
    }
}

impl Payload for Deaf {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self) {
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

/// Leaves so few descriptors that `poll(2)` refuses.
struct Poor;

impl Engine for Poor {
    fn name(&self) -> &str {
        "poor"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let limit = Rlimit {
            current: Some(1),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        Ok(Box::new(Deaf))
    }
}

/// Leaves the box's directory.
struct Astray;

impl Engine for Astray {
    fn name(&self) -> &str {
        "astray"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        env::set_current_dir("/").unwrap();
        Process.start(spec, dir)
    }
}

/// Panics when it is to wait for a payload that runs; one of its threads does, too, and later.
struct Clumsy(Option<Box<dyn Payload>>);

impl Engine for Clumsy {
    fn name(&self) -> &str {
        "clumsy"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self(Some(Process.start(spec, dir)?))))
    }
}

impl Payload for Clumsy {
    fn pid(&self) -> Option<u32> {
        self.0.as_ref().and_then(|payload| payload.pid())
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self) {}

    fn kill(&self) {
        fs::write("killed", "").unwrap();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        let _later = PanicsElsewhere;
        panic!("this one ends the shim");
    }
}

struct PanicsElsewhere;

impl Drop for PanicsElsewhere {
    fn drop(&mut self) {
        let _ = thread::spawn(|| panic!("this one does not")).join();
    }
}

fn on(engine: &str, grace: Duration) -> Shim {
    let mut payload = sh(&format!("echo begun; {LOOP}"));
    payload.engine = engine.to_owned();
    let spec = InstanceSpec {
        stop_grace_ms: grace.as_millis().try_into().unwrap(),
        ..spec(payload)
    };
    Shim::told(&spec.to_line().unwrap())
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// The process that [`Slow`] leaves to the shim.
fn stray(shim: &Shim) -> u32 {
    let path = shim.path("stray");
    eventually("a start", || path.exists());
    fs::read_to_string(path).unwrap().parse().unwrap()
}

fn an_order_during_a_start_is_obeyed_when_it_is_over() {
    for signal in [Signal::SIGTERM, KILL_SIGNAL] {
        let mut shim = on("slow", LONG);
        let stray = stray(&shim);
        shim.signal(signal);
        fs::write(shim.path("go"), "").unwrap();
        shim.wait();
        assert!(shim.record().requested);
        let ending = shim.record().ending;
        assert!(matches!(ending, Ending::Signaled { .. }), "{ending:?}");
        assert!(!runs(stray));
    }
}

fn a_start_that_takes_too_long_is_ended_with_all_that_it_started() {
    let mut shim = on("slow", SHORT);
    let stray = stray(&shim);
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
    assert!(shim.record().requested);
    assert!(!runs(stray));
    assert_eq!(shim.report(), Report::Failed(shim.record()));
}

fn a_payload_that_hangs_in_every_call_does_not_outlive_the_watchdog() {
    let mut shim = on("deaf", SHORT);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
}

fn a_shim_that_can_take_no_more_orders_ends() {
    let mut shim = on("poor", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(125));
}

fn to_order_the_end_again_does_not_postpone_it() {
    let mut shim = on("deaf", LONG);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    eventually("the end", || {
        shim.signal(KILL_SIGNAL);
        thread::sleep(Duration::from_millis(100));
        shim.child.try_wait().unwrap().is_some()
    });
    assert_eq!(shim.wait().code(), Some(137));
}

fn an_engine_that_changes_the_directory_does_not_misplace_the_record() {
    let mut shim = on("astray", LONG);
    shim.eventually_prints("begun");
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert!(shim.path(FILES.exit).exists());
}

fn a_panic_ends_the_payload_and_is_the_one_on_record() {
    let mut shim = on("clumsy", LONG);
    let payload = match shim.report() {
        Report::Ready { payload_pid } => payload_pid.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shim.wait().code(), Some(101));
    assert!(!runs(payload) && shim.path("killed").exists());
    match shim.record().ending {
        Ending::Panicked { message, .. } => assert_eq!(message, "this one ends the shim"),
        other => panic!("{other:?}"),
    }
}

macro_rules! run {
    ($($test:ident,)*) => {
        $(
            println!("test {}", stringify!($test));
            $test();
        )*
    };
}

fn main() {
    vmm_shim::Shim::new()
        .engine(Slow)
        .engine(Deaf)
        .engine(Poor)
        .engine(Astray)
        .engine(Clumsy(None))
        .run_if_shim();
    run![
        an_order_during_a_start_is_obeyed_when_it_is_over,
        a_start_that_takes_too_long_is_ended_with_all_that_it_started,
        a_payload_that_hangs_in_every_call_does_not_outlive_the_watchdog,
        a_shim_that_can_take_no_more_orders_ends,
        to_order_the_end_again_does_not_postpone_it,
        an_engine_that_changes_the_directory_does_not_misplace_the_record,
        a_panic_ends_the_payload_and_is_the_one_on_record,
    ];
}
