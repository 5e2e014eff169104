//! Boxes of a runtime while the disk does not respond to reads of one of them.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use common::boxes::{open_runtime, script, sleeping, start_box};
use common::{DEADLINE, eventually, kill};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use nix::sys::signal::Signal;
use tokio::time::timeout;
use vmm_protocol::FILES;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ready, Removal, VmmRuntime, with_causes};

/// Makes this process wait when it opens a file in a directory, until this is dropped: `fanotify(7)`.
/// The drop fails if that took longer than [`DEADLINE`].
struct StalledOpens {
    /// The number of opens that wait.
    waiting: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<bool>>,
}

impl StalledOpens {
    /// `dir` can also be a single file. Returns `None`, after a note on stderr, where this is not permitted.
    fn in_dir(dir: &Path) -> Option<Self> {
        let marked = Fanotify::init(InitFlags::FAN_CLASS_CONTENT, EventFFlags::O_RDONLY).and_then(
            |fanotify| {
                let opens =
                    MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD | MaskFlags::FAN_ONDIR;
                fanotify.mark(
                    MarkFlags::FAN_MARK_ADD,
                    opens,
                    nix::fcntl::AT_FDCWD,
                    Some(dir),
                )?;
                Ok(fanotify)
            },
        );
        let fanotify = match marked {
            Ok(fanotify) => fanotify,
            Err(error) => {
                common::skip(format_args!(
                    "this test needs permission events of fanotify: {error}"
                ));
                return None;
            }
        };
        let waiting = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let work = {
            let (waiting, stop) = (Arc::clone(&waiting), Arc::clone(&stop));
            move || serve(&fanotify, &waiting, &stop)
        };
        Some(Self {
            waiting,
            stop,
            thread: Some(thread::spawn(work)),
        })
    }

    async fn eventually_waiting(&self) {
        eventually("an open waits", || self.waiting.load(Ordering::SeqCst) > 0).await;
    }
}

impl Drop for StalledOpens {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let is_in_time = self.thread.take().unwrap().join().unwrap();
        assert!(
            is_in_time || thread::panicking(),
            "the stall blocks the test"
        );
    }
}

/// Permits the opens of other processes, such as the shim, and at the end all that wait. Returns
/// false if `stop` was not set in time.
fn serve(fanotify: &Fanotify, waiting: &AtomicUsize, stop: &AtomicBool) -> bool {
    let mut held = Vec::new();
    let begun = Instant::now();
    while !stop.load(Ordering::SeqCst) && begun.elapsed() < DEADLINE {
        let mut fds = [PollFd::new(fanotify.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 20_u8).unwrap() == 0 {
            continue;
        }
        for event in fanotify.read_events().unwrap() {
            if event.pid() == process::id() as i32 {
                held.push(event);
                waiting.fetch_add(1, Ordering::SeqCst);
            } else if let Some(fd) = event.fd() {
                let response = FanotifyResponse::new(fd, Response::FAN_ALLOW);
                fanotify.write_response(response).unwrap();
            }
        }
    }
    for event in &held {
        let response = FanotifyResponse::new(event.fd().unwrap(), Response::FAN_ALLOW);
        fanotify.write_response(response).unwrap();
    }
    stop.load(Ordering::SeqCst)
}

/// Checks that the runtime notices the death of another box, and that it shows its boxes.
async fn assert_responsive(runtime: &VmmRuntime) {
    let other = start_box(runtime, sleeping()).await;
    kill(other.pid.unwrap(), Signal::SIGKILL);
    let ended = timeout(DEADLINE, runtime.wait(&other.id)).await;
    assert_eq!(ended.unwrap().unwrap().signal, Some(9));
    timeout(DEADLINE, runtime.list()).await.unwrap();
    runtime.remove(&other.id, Removal::Ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_record_that_cannot_be_read_delays_only_its_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let Some(stalled) = StalledOpens::in_dir(&bx.dir) else {
        return;
    };
    let stop = tokio::spawn({
        let (runtime, id) = (runtime.clone(), bx.id.clone());
        async move { runtime.stop(&id).await }
    });
    stalled.eventually_waiting().await;
    assert_responsive(&runtime).await;
    drop(stalled);
    let ended = stop.await.unwrap().unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Stopped, Some(15)));
    runtime.shutdown(DEADLINE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_files_cannot_be_read_delays_only_its_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let outside = tempfile::tempdir().unwrap();
    let go = outside.path().join("go");
    // Ends before it is ready.
    let spec = script(&format!(
        "touch $VMM_BOX_DIR/up; while [ ! -e {} ]; do sleep 0.01; done; exit 7",
        go.display()
    ));
    let bx = runtime.create(spec.ready(Ready::Notified)).await.unwrap();
    let start = || {
        let (runtime, id) = (runtime.clone(), bx.id.clone());
        tokio::spawn(async move { runtime.start(&id).await })
    };
    let failing = start();
    eventually("the payload is up", || bx.dir.join("up").exists()).await;
    let Some(stalled) = StalledOpens::in_dir(&bx.dir) else {
        fs::write(go, "").unwrap();
        failing.await.unwrap().unwrap_err();
        return;
    };
    fs::write(go, "").unwrap();
    stalled.eventually_waiting().await;
    assert_responsive(&runtime).await;
    drop(stalled);
    let error = with_causes(&failing.await.unwrap().unwrap_err());
    assert!(error.contains("code 7"), "{error}");

    let stalled = StalledOpens::in_dir(&bx.dir).unwrap();
    let failing = start();
    stalled.eventually_waiting().await;
    assert_responsive(&runtime).await;
    drop(stalled);
    failing.await.unwrap().unwrap_err();
    runtime.shutdown(DEADLINE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_open_the_stderr_of_its_shim_delays_only_its_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    runtime.stop(&bx.id).await.unwrap();
    let Some(stalled) = StalledOpens::in_dir(&bx.dir.join(FILES.shim_stderr)) else {
        return;
    };
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), bx.id.clone());
        async move { runtime.start(&id).await }
    });
    stalled.eventually_waiting().await;
    assert_responsive(&runtime).await;
    drop(stalled);
    start.await.unwrap().unwrap();
    runtime.shutdown(DEADLINE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_free_while_the_directory_of_its_box_is_deleted() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(sleeping().name("db")).await.unwrap();
    // Not empty, so that the removal opens it.
    fs::create_dir_all(bx.dir.join("data/inner")).unwrap();
    let Some(stalled) = StalledOpens::in_dir(&bx.dir.join("data")) else {
        return;
    };
    let removed = timeout(DEADLINE, runtime.remove("db", Removal::Ended)).await;
    removed.unwrap().unwrap();
    stalled.eventually_waiting().await;
    runtime.create(sleeping().name("db")).await.unwrap();
    drop(stalled);
    let boxes = home.path().join("boxes");
    eventually("the directory is deleted", || {
        boxes.read_dir().unwrap().count() == 1
    })
    .await;
    runtime.shutdown(DEADLINE).await;
}
