//! Shims that start before they have a box.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::{Child, Command};

use nix::sys::signal::Signal;
use support::{Shim, command_of, sh, spec};
use tempfile::TempDir;
use vmm_protocol::to_line;
use vmm_shim::{
    Assignment, BoxDir, Ending, FailureKind, Invocation, KILL_SIGNAL, PidRecord, Report,
    RuntimeProcess,
};

/// Starts a shim that waits for a box, and that must not outlive this process.
fn warm_shim(runtime: &RuntimeProcess) -> Shim {
    let boxes = tempfile::tempdir().unwrap();
    let invocation = Invocation::Warm {
        dir: boxes.path().to_owned(),
    };
    let mut shim = Shim::spawn_in(boxes, &mut command_of(&invocation));
    shim.send(&to_line(runtime).unwrap());
    shim
}

/// Returns what describes this child as a runtime.
fn as_runtime(child: &Child) -> RuntimeProcess {
    let line = to_line(&RuntimeProcess::this().unwrap()).unwrap();
    let mut named: serde_json::Value = serde_json::from_slice(&line).unwrap();
    let record = PidRecord::of(child.id()).unwrap().unwrap();
    for (field, value) in serde_json::to_value(record).unwrap().as_object().unwrap() {
        named[field] = value.clone();
    }
    serde_json::from_value(named).unwrap()
}

/// Assigns a box to a warm shim, and returns its directory.
fn assign(shim: &mut Shim) -> (TempDir, BoxDir) {
    let dir = tempfile::tempdir_in(&shim.dir).unwrap();
    let assignment = Assignment {
        id: "b1".into(),
        dir: dir.path().canonicalize().unwrap(),
    };
    shim.send(&to_line(&assignment).unwrap());
    assert_eq!(shim.report(), Report::Taken);
    (dir, BoxDir::new(assignment.dir))
}

#[test]
fn a_warm_shim_runs_the_box_that_it_gets() {
    let mut shim = warm_shim(&RuntimeProcess::this().unwrap());
    let (_guard, dir) = assign(&mut shim);
    shim.send(&spec(sh("echo $VMM_BOX_DIR; exit 3")).to_line().unwrap());
    assert!(matches!(shim.report(), Report::Ready { .. }));
    assert_eq!(shim.wait().code(), Some(3));
    assert_eq!(dir.shim_record().unwrap().unwrap().pid, shim.child.id());
    let record = dir.exit_record().unwrap().unwrap();
    assert_eq!(record.ending, Ending::Exited { code: 3 });
    let console = fs::read_to_string(dir.console_path(0)).unwrap();
    assert_eq!(console.trim_end(), dir.path().to_str().unwrap());
}

/// The runtime replaces a shim that does not report it, but not one whose disk is slow.
#[test]
fn a_warm_shim_reports_that_it_knows_its_box_before_it_uses_the_disk() {
    let mut shim = warm_shim(&RuntimeProcess::this().unwrap());
    let missing = Assignment {
        id: "b1".into(),
        dir: shim.dir.path().join("missing"),
    };
    shim.send(&to_line(&missing).unwrap());
    assert_eq!(shim.report(), Report::Taken);
    assert!(matches!(shim.report(), Report::Failed(_)));
}

#[test]
fn a_warm_shim_ends_with_its_watchdog() {
    let mut shim = warm_shim(&RuntimeProcess::this().unwrap());
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(0));
}

#[test]
fn a_warm_shim_ends_with_its_runtime_although_another_process_holds_the_watchdog() {
    let mut runtime = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut shim = warm_shim(&as_runtime(&runtime));
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    assert_eq!(shim.wait().code(), Some(0));
}

#[test]
fn a_signal_ends_a_warm_shim() {
    for signal in [Signal::SIGTERM, KILL_SIGNAL] {
        let mut shim = warm_shim(&RuntimeProcess::this().unwrap());
        shim.signal(signal);
        shim.wait();
    }
}

/// The next runtime may have found no `shim.pid`, and counts on no payload.
#[test]
fn a_warm_shim_whose_runtime_has_ended_starts_no_payload() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let runtime = as_runtime(&child);
    let mut shim = warm_shim(&runtime);
    let (_guard, dir) = assign(&mut shim);
    child.kill().unwrap();
    child.wait().unwrap();
    let spec = spec(sh("echo > $VMM_BOX_DIR/started; exec sleep 1000"));
    shim.send(&spec.to_line_from(&runtime).unwrap());
    assert_eq!(shim.wait().code(), Some(125));
    let record = dir.exit_record().unwrap().unwrap();
    let failed_to_start = matches!(
        record.ending,
        Ending::Failed {
            kind: FailureKind::Engine,
            ..
        }
    );
    assert!(failed_to_start, "{record:?}");
    assert!(!dir.path().join("started").exists());
}
