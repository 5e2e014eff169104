//! A dead shim that a tracer holds costs nothing, and is reaped when the tracer is gone.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use common::herd::Herd;
use common::own_process::{block_on, in_own_process};
use common::{Doomed, Fixture, as_pid, eventually, is_gone, is_zombie, sleeper};
use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe, read, write};
use shim_reaper::{ShimReaper, SpawnOptions};

/// Fail points belong to the whole process.
#[test]
fn a_dead_shim_held_by_a_tracer_is_looked_at_by_sweeps_only() {
    in_own_process(
        "a_dead_shim_held_by_a_tracer_is_looked_at_by_sweeps_only",
        || block_on(sweeps_only()),
    );
}

async fn sweeps_only() {
    let interval = Duration::from_millis(50);
    let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
    let options = SpawnOptions::new().kill_on_drop(true);
    let spawned = fixture.reaper.spawn_with(sleeper(), options).await.unwrap();
    let mut doomed = Doomed::default();
    let owned = doomed.spawn(sleeper()).unwrap();
    let registered = fixture.reaper.register(owned).await.unwrap();
    // The child of another process.
    let mut parent = common::shell("sleep 1000 & echo $!; wait")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let attached = fixture
        .reaper
        .attach(first_line(parent.stdout.take().unwrap()))
        .await
        .unwrap();
    let handles = [spawned, registered, attached];

    let examined = Arc::new(AtomicU64::new(0));
    fail::cfg_callback("shim_reaper::examine", {
        let examined = Arc::clone(&examined);
        move || {
            examined.fetch_add(1, Relaxed);
        }
    })
    .unwrap();
    let mut tracers = Herd(Vec::new());
    for handle in &handles {
        let Some(tracer) = tracer_of(handle.pid()) else {
            eprintln!("SKIPPED: this process may not trace others");
            return;
        };
        tracers.0.push(tracer);
        handle.kill().unwrap();
        eventually("dead", || is_zombie(handle.pid())).await;
    }
    fixture.sweeps(2).await;
    let (from, sweeps) = (
        examined.load(Relaxed),
        fixture.reaper.stats().sweeps_completed,
    );
    fixture.sweeps(20).await;
    let sweeps = fixture.reaper.stats().sweeps_completed - sweeps;
    let looks = examined.load(Relaxed) - from;
    // Twice each: as one that no watch reports, and as a spot check.
    assert!(
        looks <= 6 * (sweeps + 1),
        "{looks} looks in {sweeps} sweeps"
    );
    assert!(handles[..2].iter().all(|handle| is_zombie(handle.pid())));

    for tracer in tracers.cull(handles.len()) {
        waitpid(as_pid(tracer), None).unwrap();
    }
    for handle in handles {
        assert_eq!(handle.clone().await.unwrap().signal(), Some(9));
        eventually("reaped", || is_gone(handle.pid())).await;
    }
    fixture.expect(2, 1, 0).await;
    parent.kill().unwrap();
    parent.wait().unwrap();
}

fn first_line(stdout: impl std::io::Read) -> u32 {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

/// A child that traces a process and never waits for it; `None` where that is forbidden.
fn tracer_of(pid: u32) -> Option<u32> {
    let (reader, writer) = pipe().unwrap();
    // SAFETY: the child calls async-signal-safe functions only, and never returns.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut attached = [0];
            assert_eq!(read(&reader, &mut attached).unwrap(), 1);
            (attached[0] == 1).then(|| child.as_raw().cast_unsigned())
        }
        ForkResult::Child => {
            // SAFETY: takes integers and null pointers only.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let none = std::ptr::null_mut::<libc::c_void>();
                let done = libc::ptrace(libc::PTRACE_SEIZE, as_pid(pid).as_raw(), none, none);
                let _ = write(&writer, &[u8::from(done == 0)]);
                loop {
                    libc::pause();
                }
            }
        }
    }
}
