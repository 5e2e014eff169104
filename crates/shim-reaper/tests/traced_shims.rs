//! A dead shim whose tracer has not waited for it costs no CPU time. Its handles resolve at once, and
//! the reaper reaps it when the tracer is gone. The report of a shutdown lists it.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use common::forks::IdleChildren;
use common::own_process::{block_on, in_own_process};
use common::{
    DEADLINE, Fixture, KillOnDrop, as_pid, eventually, is_gone, is_zombie, skip, sleeper,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe, read, write};
use shim_reaper::{ShimReaper, SpawnOptions};
use tokio::time::timeout;

/// Runs in a process of its own, because fail points are process-wide.
#[test]
fn only_sweeps_examine_a_dead_shim_that_is_traced() {
    in_own_process("only_sweeps_examine_a_dead_shim_that_is_traced", || {
        block_on(examines_in_sweeps_only())
    });
}

async fn examines_in_sweeps_only() {
    let interval = Duration::from_millis(50);
    let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
    let options = SpawnOptions::new().kill_on_drop(true);
    let spawned = fixture.reaper.spawn_with(sleeper(), options).unwrap();
    let mut children = KillOnDrop::default();
    let owned = children.spawn(sleeper()).unwrap();
    let registered = fixture.reaper.register(owned).unwrap();
    // A child of another process.
    let mut parent = common::shell("sleep 1000 & echo $!; wait")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let attached = fixture
        .reaper
        .attach(first_line(parent.stdout.take().unwrap()))
        .unwrap();
    let handles = [spawned, registered, attached];
    let exits = fixture.reaper.exits();

    let examined = Arc::new(AtomicU64::new(0));
    fail::cfg_callback("shim_reaper::examine", {
        let examined = Arc::clone(&examined);
        move || {
            examined.fetch_add(1, Relaxed);
        }
    })
    .unwrap();
    let mut tracers = IdleChildren(Vec::new());
    for handle in &handles {
        let Some(tracer) = tracer_of(handle.id()) else {
            return skip("this test needs permission to trace other processes");
        };
        tracers.0.push(tracer);
        handle.start_kill().unwrap();
        eventually("the shim exits", || is_zombie(handle.id())).await;
    }
    fixture.sweeps(2).await;
    let (examined_before, sweeps_before) = (
        examined.load(Relaxed),
        fixture.reaper.stats().sweeps_completed,
    );
    fixture.sweeps(20).await;
    let sweeps = fixture.reaper.stats().sweeps_completed - sweeps_before;
    let examined = examined.load(Relaxed) - examined_before;
    // A sweep may examine each shim twice: because no watch reports it, and as a spot check.
    assert!(
        examined <= 6 * (sweeps + 1),
        "{examined} examinations in {sweeps} sweeps"
    );
    for handle in &handles[..2] {
        let exit = timeout(DEADLINE, handle.clone()).await.unwrap().unwrap();
        assert_eq!(exit.signal(), Some(9));
        assert!(is_zombie(handle.id()));
    }
    assert_eq!(fixture.reaper.registered().len(), 2);

    for tracer in tracers.kill(handles.len()) {
        waitpid(as_pid(tracer), None).unwrap();
    }
    for handle in handles {
        assert_eq!(handle.clone().await.unwrap().signal(), Some(9));
        eventually("the shim is reaped", || is_gone(handle.id())).await;
    }
    fixture.expect(2, 1, 0).await;
    fixture.reaper.shutdown().await;
    assert_eq!(exits.count().await, 3, "each exit is published once");
    parent.kill().unwrap();
    parent.wait().unwrap();
}

#[tokio::test]
async fn a_shutdown_reports_a_dead_shim_that_is_traced() {
    let reaper = ShimReaper::start();
    let options = SpawnOptions::new().kill_on_drop(true);
    let shim = reaper.spawn_with(sleeper(), options).unwrap();
    let Some(tracer) = tracer_of(shim.id()) else {
        return skip("this test needs permission to trace other processes");
    };
    let mut tracers = IdleChildren(vec![tracer]);
    let exit = timeout(DEADLINE, shim.kill()).await.unwrap().unwrap();
    let report = reaper.shutdown().await;
    assert_eq!(
        (exit.signal(), report.held_by_tracer),
        (Some(9), vec![shim.id()])
    );
    assert_eq!((report.drained, report.still_running), (0, Vec::new()));
    for tracer in tracers.kill(1) {
        waitpid(as_pid(tracer), None).unwrap();
    }
    assert_eq!(
        waitpid(as_pid(shim.id()), None).unwrap().pid(),
        Some(as_pid(shim.id()))
    );
}

fn first_line(stdout: impl std::io::Read) -> u32 {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

/// Forks a child that traces a process and never waits for it. Returns `None` where that is not
/// permitted.
fn tracer_of(pid: u32) -> Option<u32> {
    let (reader, writer) = pipe().unwrap();
    // SAFETY: the child calls async-signal-safe functions only, and never returns.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut attached = [0];
            assert_eq!(read(&reader, &mut attached).unwrap(), 1);
            (attached[0] == 1).then(|| child.as_raw() as u32)
        }
        ForkResult::Child => {
            // SAFETY: takes integers and null pointers only.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let null = std::ptr::null_mut::<libc::c_void>();
                let result = libc::ptrace(libc::PTRACE_SEIZE, as_pid(pid).as_raw(), null, null);
                let _ = write(&writer, &[u8::from(result == 0)]);
                loop {
                    libc::pause();
                }
            }
        }
    }
}
