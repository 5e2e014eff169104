//! A start in progress is visible, with the pid of its shim.

mod common;

use std::time::{Duration, Instant};

use common::boxes::{
    box_dir, changes_up_to, next_event, open_runtime, options, script, sleeping, start_box,
    wait_for_info, wait_for_status,
};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, KillOnDrop, eventually, is_gone, shell};
use nix::sys::signal::{Signal, raise};
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, BoxSpec, BoxStatus, ExecSpec, Ready, Removal, RuntimeError, VmmRuntime,
};

/// Returns a spec whose payload becomes ready, and exits with 3, once the file `go` exists.
fn ready_on_go() -> BoxSpec {
    let notify = "import os, socket, time
while not os.path.exists(os.environ['VMM_BOX_DIR'] + '/go'): time.sleep(0.01)
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
os._exit(3)";
    BoxSpec::new(["python3", "-c", notify]).ready(Ready::Notified)
}

#[tokio::test]
async fn a_start_in_progress_shows_its_pid_in_info_events_and_counts() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(ready_on_go()).await.unwrap().id;
    let mut events = runtime.events();
    let observe = async {
        let event = next_event(&mut events).await;
        assert_eq!(event.change, BoxChange::Starting);
        let info = runtime.info(&id).await.unwrap();
        assert_eq!(info, event.info);
        assert_eq!((info.status, info.stopping), (BoxStatus::Starting, false));
        assert!(procfs::exists(info.pid.unwrap()));
        assert_eq!((info.payload_pid, info.exit_code), (None, None));
        let counts = runtime.count_boxes().await;
        assert_eq!(
            (counts.starting, counts.configured, counts.running),
            (1, 0, 0)
        );
        std::fs::write(box_dir(&home, &id).join("go"), "").unwrap();
        info.pid
    };
    let (started, pid) = tokio::join!(runtime.start(&id), observe);
    assert_ne!(started.unwrap().status, BoxStatus::Starting);
    let started = next_event(&mut events).await;
    assert_eq!(
        (started.change, started.info.pid),
        (BoxChange::Started, pid)
    );
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_later_start_does_not_show_how_the_last_run_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ready_on_go_twice()).await;
    runtime.wait(&bx.id).await.unwrap();
    let observe = async {
        let starting = wait_for_status(&runtime, &bx.id, BoxStatus::Starting).await;
        assert_eq!((starting.exit_code, starting.error), (None, None));
        runtime.stop(&bx.id).await.unwrap()
    };
    let (start, stopped) = tokio::join!(runtime.start(&bx.id), observe);
    start.unwrap_err();
    assert_eq!(
        (stopped.status, stopped.exit_code),
        (BoxStatus::Failed, Some(3))
    );
}

/// Returns a spec whose payload fails with 3 in its first run, and is never ready in a later one.
fn ready_on_go_twice() -> BoxSpec {
    let text = "import os, socket, time
first = os.environ['VMM_BOX_DIR'] + '/first'
while os.path.exists(first): time.sleep(1)
open(first, 'w')
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
os._exit(3)";
    BoxSpec::new(["python3", "-c", text]).ready(Ready::Notified)
}

#[tokio::test]
async fn a_cancelled_start_is_an_event_and_leaves_the_box_as_it_was() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let never_ready = sleeping().ready(Ready::Notified);
    let id = runtime.create(never_ready).await.unwrap().id;
    let mut events = runtime.events();
    let stop = async {
        let pid = next_event(&mut events).await.info.pid.unwrap();
        (runtime.stop(&id).await.unwrap(), pid)
    };
    let (start, (stopped, pid)) = tokio::join!(runtime.start(&id), stop);
    start.unwrap_err();
    assert_eq!((stopped.status, stopped.pid), (BoxStatus::Configured, None));
    assert!(is_gone(pid));
    let cancelled = changes_up_to(&mut events, BoxChange::Cancelled).await;
    assert_eq!(cancelled, [BoxChange::Cancelled]);
}

#[tokio::test]
async fn a_box_that_starts_runs_no_commands_yet() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(ready_on_go()).await.unwrap().id.to_string();
    let refused = async {
        wait_for_status(&runtime, &id, BoxStatus::Starting).await;
        let command = || ExecSpec::new("", ["true"]);
        let errors = [
            runtime.exec(&id, command()).await.unwrap_err(),
            runtime.start_execution(&id, command()).await.unwrap_err(),
            runtime.attach(&id, "exec-1").await.unwrap_err(),
            runtime.executions(&id).await.unwrap_err(),
        ];
        runtime.stop(&id).await.unwrap();
        errors
    };
    let (_, errors) = tokio::join!(runtime.start(&id), refused);
    for error in errors {
        assert!(matches!(error, RuntimeError::Starting { .. }), "{error:?}");
    }
    let error = runtime.exec(&id, ExecSpec::new("", ["true"])).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, RuntimeError::NotRunning { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn wait_waits_through_a_start() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(ready_on_go()).await.unwrap().id;
    let wait = async {
        wait_for_info(&runtime, &id, |info| info.pid.is_some()).await;
        let mut wait = std::pin::pin!(runtime.wait(&id));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        std::fs::write(box_dir(&home, &id).join("go"), "").unwrap();
        wait.await.unwrap()
    };
    let (_, ended) = tokio::join!(runtime.start(&id), wait);
    assert_eq!(ended.exit_code, Some(3));
}

#[tokio::test]
async fn info_gives_back_the_spec_and_serializes_without_it() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("exec sleep 1000")
        .name("web")
        .env("TOKEN", "hunter2");
    let mut events = runtime.events();
    let bx = start_box(&runtime, spec.clone()).await;
    assert_eq!(*bx.spec, spec);
    assert_eq!(
        (bx.engine.as_str(), &bx.dir),
        ("process", &box_dir(&home, &bx.id))
    );
    let json = serde_json::to_value(&bx).unwrap();
    assert_eq!(
        (&json["status"], &json["name"]),
        (&"running".into(), &"web".into())
    );
    assert!(!json.to_string().contains("hunter2"), "{json}");
    let event = serde_json::to_value(next_event(&mut events).await).unwrap();
    assert_eq!(
        (&event["change"], &event["info"]["name"]),
        (&"created".into(), &"web".into())
    );
    let metrics = serde_json::to_value(runtime.metrics().await).unwrap();
    assert_eq!(metrics["num_running_boxes"], 1);
    let refused = runtime.remove("web", Removal::Ended).await;
    assert!(refused.is_err());
    runtime.remove("web", Removal::Force).await.unwrap();
    eventually("the box is gone", || !bx.dir.exists()).await;
}

#[test]
fn a_box_that_is_ready_in_time_starts_although_its_runtime_is_late_to_read_its_report() {
    let name = "a_box_that_is_ready_in_time_starts_although_its_runtime_is_late_to_read_its_report";
    in_own_process(name, || {
        block_on(async {
            let home = PerTestBoxHome::new();
            let options = options(home.path()).start_timeout(Duration::from_secs(3));
            let runtime = VmmRuntime::open(options).await.unwrap();
            let deadline = Instant::now() + DEADLINE;
            while !is_late_and_starts(&home, &runtime).await {
                assert!(
                    Instant::now() < deadline,
                    "this process is never stopped in time"
                );
            }
            runtime.shutdown(DEADLINE).await;
        });
    });
}

/// Starts a box that is ready while all threads of this process are stopped, beyond the start timeout. Returns
/// false if this process was too slow to stop itself before that.
async fn is_late_and_starts(home: &PerTestBoxHome, runtime: &VmmRuntime) -> bool {
    let this = std::process::id();
    let notify = format!(
        "import os, socket, time
open(os.environ['VMM_BOX_DIR'] + '/up', 'w')
while ') T ' not in open('/proc/{this}/stat').read(): time.sleep(0.01)
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)"
    );
    let spec = BoxSpec::new(["python3", "-c", &notify]).ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    let resume = format!(
        "until grep -q ') T ' /proc/{this}/stat; do sleep 0.01; done; sleep 3.2; kill -CONT {this}"
    );
    let mut children = KillOnDrop::default();
    children.spawn(shell(&resume)).unwrap();
    let begun = Instant::now();
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.start(&id).await }
    });
    let up = box_dir(home, &id).join("up");
    eventually("the payload runs", || up.exists() || start.is_finished()).await;
    if begun.elapsed() > Duration::from_millis(1500) {
        let _ = start.await.unwrap();
        runtime.remove(&id, Removal::Force).await.unwrap();
        return false;
    }
    raise(Signal::SIGSTOP).unwrap();
    let started = start.await.unwrap().unwrap();
    assert_eq!(started.status, BoxStatus::Running);
    true
}
