//! Shims that a VMM runtime starts before it needs them.

// A test may panic, also in its helper functions.
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::boxes::{box_dir, exits_on_go, options, send_go, sleeping, start_box};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill, pause, shell};
use nix::sys::signal::{Signal, raise};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmm_protocol::{ARGV0, FILES, Invocation, procfs};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxStatus, Ready, Removal, RuntimeOptions, VmmRuntime};

/// Opens a runtime, and waits until it has this number of warm shims.
async fn open(home: &PerTestBoxHome, count: usize) -> VmmRuntime {
    open_with(home, options(home.path()).warm_shims(count), count).await
}

async fn open_with(home: &PerTestBoxHome, options: RuntimeOptions, count: usize) -> VmmRuntime {
    let runtime = VmmRuntime::open(options).await.unwrap();
    eventually("the shims wait", || warm_shims(home).len() == count).await;
    runtime
}

/// Returns the pids of the shims that wait for a box of this home.
fn warm_shims(home: &PerTestBoxHome) -> Vec<u32> {
    let boxes = home.path().canonicalize().unwrap().join("boxes");
    let is_warm = |pid: &u32| {
        let invocation = Invocation::parse(procfs::arguments(*pid).unwrap());
        invocation == Some(Invocation::Warm { dir: boxes.clone() })
    };
    procfs::pids().unwrap().filter(is_warm).collect()
}

/// Waits until this start has taken the last shim that waits, which is then no longer counted.
async fn wait_until_taken<T>(runtime: &VmmRuntime, start: &JoinHandle<T>) {
    let taken = async {
        // When the start has ended, another shim waits.
        while runtime.metrics().await.warm_shims > 0 && !start.is_finished() {
            pause().await;
        }
    };
    timeout(DEADLINE, taken).await.expect("a shim still waits");
}

fn link(pid: u32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

#[tokio::test]
async fn a_start_takes_a_warm_shim_and_the_runtime_replaces_it() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 1).await;
    assert_eq!(runtime.metrics().await.warm_shims, 1);
    assert_eq!(runtime.metrics().await.shim_reaper_registered, 0);
    let waiting = warm_shims(&home);

    let running = start_box(&runtime, exits_on_go(7)).await;
    let pid = running.pid.unwrap();
    assert_eq!(waiting, [pid]);
    let dir = box_dir(&home, &running.id);
    let args = procfs::arguments(pid).unwrap();
    let args: Vec<_> = args.iter().filter(|arg| !arg.is_empty()).collect();
    assert_eq!(args, [ARGV0, "box", &running.id, dir.to_str().unwrap()]);
    assert_eq!(link(pid, "cwd"), dir);
    assert_eq!(link(pid, "fd/2"), dir.join(FILES.shim_stderr));
    eventually("another shim waits", || warm_shims(&home).len() == 1).await;
    assert_ne!(warm_shims(&home), [pid]);
    assert_eq!(runtime.metrics().await.shim_reaper_registered, 1);

    send_go(&home, &running.id);
    let ended = runtime.wait(&running.id).await.unwrap();
    assert_eq!(ended.exit_code, Some(7));
    runtime.shutdown(Duration::from_secs(10)).await;
    assert!(warm_shims(&home).is_empty());
}

#[tokio::test]
async fn a_runtime_has_no_warm_shims_by_default() {
    let home = PerTestBoxHome::new();
    let runtime = common::boxes::open_runtime(&home).await;
    let running = start_box(&runtime, sleeping()).await;
    assert!(warm_shims(&home).is_empty());
    assert_eq!(runtime.metrics().await.warm_shims, 0);
    runtime.remove(&running.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn starts_succeed_while_no_shim_waits() {
    let home = PerTestBoxHome::new();
    let runtime = Arc::new(open(&home, 2).await);
    let starts = (0..8).map(|_| {
        let runtime = Arc::clone(&runtime);
        tokio::spawn(async move { start_box(&runtime, sleeping()).await })
    });
    let mut shims = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        shims.push(start.await.unwrap().pid.unwrap());
    }
    shims.sort_unstable();
    shims.dedup();
    assert_eq!(shims.len(), 8);
    runtime.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_dead_warm_shim_is_not_used() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 1).await;
    let dead = warm_shims(&home)[0];
    kill(dead, Signal::SIGKILL);
    let running = start_box(&runtime, sleeping()).await;
    assert_ne!(running.pid, Some(dead));
    assert!(!procfs::exists(dead) || procfs::is_zombie(dead));
    assert_eq!(runtime.metrics().await.warm_shim_failures_total, 1);
    runtime.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_warm_shim_that_dies_with_its_assignment_is_replaced_by_another_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 1).await;
    let stopped = warm_shims(&home)[0];
    kill(stopped, Signal::SIGSTOP);
    let id = runtime.create(sleeping()).await.unwrap().id;
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.start(&id).await }
    });
    wait_until_taken(&runtime, &start).await;
    // Fails if the runtime has killed it, because it hangs.
    let _ = nix::sys::signal::kill(Pid::from_raw(stopped.cast_signed()), Signal::SIGKILL);
    let running = start.await.unwrap().unwrap();
    assert_eq!(running.status, BoxStatus::Running);
    assert_ne!(running.pid, Some(stopped));
    runtime.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_warm_shim_that_hangs_is_replaced_by_another_shim() {
    let home = PerTestBoxHome::new();
    let options = options(home.path()).start_timeout(Duration::from_secs(3600));
    let runtime = open_with(&home, options.warm_shims(1), 1).await;
    let stopped = warm_shims(&home)[0];
    kill(stopped, Signal::SIGSTOP);
    let id = runtime.create(sleeping()).await.unwrap().id;
    let started = timeout(DEADLINE, runtime.start(&id)).await;
    let running = started.expect("the start hangs").unwrap();
    assert_eq!(running.status, BoxStatus::Running);
    assert_ne!(running.pid, Some(stopped));
    assert!(is_gone(stopped));
    assert_eq!(runtime.metrics().await.warm_shim_failures_total, 1);
    runtime.shutdown(Duration::from_secs(10)).await;
}

#[test]
fn a_warm_shim_is_not_replaced_because_its_runtime_was_late_to_read_its_report() {
    in_own_process(
        "a_warm_shim_is_not_replaced_because_its_runtime_was_late_to_read_its_report",
        || {
            block_on(async {
                let home = PerTestBoxHome::new();
                let runtime = open(&home, 1).await;
                let mut late = 0;
                let deadline = Instant::now() + DEADLINE;
                while late < 3 {
                    assert!(Instant::now() < deadline, "{late} of 3 in time");
                    let is_late = start_while_the_runtime_is_stopped(&home, &runtime).await;
                    late += u32::from(is_late);
                }
                runtime.shutdown(DEADLINE).await;
            });
        },
    );
}

/// Starts a box in a warm shim, which reports that it has its box while all threads of this process are
/// stopped. Returns false if this process was too slow to stop itself before the timeout.
async fn start_while_the_runtime_is_stopped(home: &PerTestBoxHome, runtime: &VmmRuntime) -> bool {
    eventually("a shim waits", || warm_shims(home).len() == 1).await;
    let failures = runtime.metrics().await.warm_shim_failures_total;
    let waiting = warm_shims(home)[0];
    kill(waiting, Signal::SIGSTOP);
    let id = runtime.create(sleeping()).await.unwrap().id;
    // It does not report before this process is stopped, which is then stopped beyond the timeout.
    let this = std::process::id();
    let resume = format!(
        "echo; until grep -q ') T ' /proc/{this}/stat; do sleep 0.01; done; \
         kill -CONT {waiting}; sleep 1.2; kill -CONT {this}"
    );
    let mut helper = shell(&resume).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = helper.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.start(&id).await }
    });
    wait_until_taken(runtime, &start).await;
    let is_in_time = begun.elapsed() < Duration::from_millis(500);
    raise(Signal::SIGSTOP).unwrap();
    let running = start.await.unwrap().unwrap();
    helper.wait().unwrap();
    if is_in_time {
        assert_eq!(running.pid, Some(waiting));
        let metrics = runtime.metrics().await;
        assert_eq!(metrics.warm_shim_failures_total, failures);
    }
    runtime.remove(&id, Removal::Force).await.unwrap();
    is_in_time
}

/// The timeout for a warm shim ends when it has taken its box, whatever the payload does to its files.
#[tokio::test]
async fn a_payload_in_a_warm_shim_may_take_long_until_it_is_ready() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 1).await;
    let waiting = warm_shims(&home);
    let notify = "import os, socket, time
os.remove(os.environ['VMM_BOX_DIR'] + '/shim.pid')
time.sleep(2)
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)";
    let spec = BoxSpec::new(["python3", "-c", notify]).ready(Ready::Notified);
    let running = start_box(&runtime, spec).await;
    assert_eq!(waiting, [running.pid.unwrap()]);
    assert_eq!(runtime.metrics().await.warm_shim_failures_total, 0);
    runtime.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_dropped_runtime_leaves_no_warm_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 3).await;
    let waiting = warm_shims(&home);
    drop(runtime);
    eventually("they have ended and are reaped", || {
        !waiting.iter().any(|pid| procfs::exists(*pid))
    })
    .await;
}

#[tokio::test]
async fn a_detached_box_in_a_once_warm_shim_is_found_by_its_arguments() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home, 1).await;
    let running = start_box(&runtime, sleeping().detached(true)).await;
    runtime.shutdown(Duration::from_secs(10)).await;
    fs::remove_file(record_of(&home, &running.id)).unwrap();

    let runtime = open(&home, 1).await;
    let found = runtime.info(&running.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, running.pid));
    assert_eq!(runtime.list().await.len(), 1);
    runtime.remove(&running.id, Removal::Force).await.unwrap();
    runtime.shutdown(Duration::from_secs(10)).await;
}

fn record_of(home: &PerTestBoxHome, id: &str) -> PathBuf {
    Path::new(&box_dir(home, id)).join(FILES.shim_pid)
}
