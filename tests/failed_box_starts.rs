//! A start that fails at any step leaves no process.

mod common;

use std::time::Duration;

use common::boxes::{box_dir, next_event, open_runtime, options, script, sleeping};
use common::eventually;
use futures::future::join_all;
use futures::poll;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, BoxSpec, BoxStatus, Ending, FailureKind, Ready, Removal, RuntimeError, ShimProgram,
    StartError, VmmRuntime, with_causes,
};

#[tokio::test]
async fn fifty_failed_starts_leave_no_zombie() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut specs = Vec::new();
    for _ in 0..10 {
        specs.push(BoxSpec::new(["no-such-program"]));
        specs.push(BoxSpec::new(["/etc/passwd"]));
        specs.push(BoxSpec::new::<String>([]));
        specs.push(sleeping().working_dir("/nowhere"));
        specs.push(script("exit 3").ready(Ready::Notified));
    }
    let starts = specs.into_iter().map(|spec| async {
        let id = runtime.create(spec).await.unwrap().id;
        (id.clone(), runtime.start(&id).await)
    });
    for (id, outcome) in join_all(starts).await {
        match outcome {
            Err(RuntimeError::Start { id: failed, source }) => {
                assert_eq!(failed, id);
                assert!(matches!(source, StartError::Failed { .. }), "{source:?}");
            }
            other => panic!("{other:?}"),
        }
        let info = runtime.info(&id).await.unwrap();
        assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
        assert!(info.error.is_some());
    }
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.boxes_failed_total, 50);
    assert_eq!(metrics.num_running_boxes, 0);
    eventually("every shim is reaped", || {
        // The thread of the reaper updates the count.
        futures::executor::block_on(runtime.metrics()).shim_reaped == 50
    })
    .await;
    assert_eq!(runtime.metrics().await.shim_reaper_registered, 0);
}

#[tokio::test]
async fn a_failed_start_has_a_kind_and_a_shell_exit_code() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for (spec, expected, code) in [
        (
            BoxSpec::new(["no-such-program"]),
            FailureKind::NotFound,
            127,
        ),
        (
            BoxSpec::new(["/etc/passwd"]),
            FailureKind::NotExecutable,
            126,
        ),
        (BoxSpec::new::<String>([]), FailureKind::Spec, 125),
    ] {
        let id = runtime.create(spec).await.unwrap().id;
        let error = runtime.start(&id).await.unwrap_err();
        let info = runtime.info(&id).await.unwrap();
        assert_eq!(info.exit_code, Some(code), "{error}");
        assert!(matches!(info.ending, Some(Ending::Failed { kind, .. }) if kind == expected));
        assert!(error.to_string().contains(&*id), "{error}");
    }
}

#[tokio::test]
async fn a_payload_that_is_not_ready_is_killed_at_the_start_timeout() {
    let home = PerTestBoxHome::new();
    let options = options(home.path()).start_timeout(Duration::from_millis(300));
    let runtime = VmmRuntime::open(options).await.unwrap();
    let mut events = runtime.events();
    let id = runtime
        .create(script("echo $$ > $VMM_BOX_DIR/me; exec sleep 1000").ready(Ready::Notified))
        .await
        .unwrap()
        .id;
    match runtime.start(&id).await {
        Err(RuntimeError::Start {
            source: StartError::NotReady { after },
            ..
        }) => assert_eq!(after, Duration::from_millis(300)),
        other => panic!("{other:?}"),
    }
    let payload = std::fs::read_to_string(box_dir(&home, &id).join("me"));
    if let Ok(payload) = payload {
        assert!(common::is_gone(payload.trim().parse().unwrap()));
    }
    assert_eq!(next_event(&mut events).await.change, BoxChange::Created);
    assert_eq!(next_event(&mut events).await.change, BoxChange::Starting);
    let failed = next_event(&mut events).await;
    assert_eq!(failed.change, BoxChange::Failed);
    assert!(failed.info.error.unwrap().contains("0.3 s"));
}

#[tokio::test]
async fn a_program_that_is_not_a_shim_is_killed() {
    for program in ["/bin/true", "/bin/cat", "/usr/bin/yes"] {
        let home = PerTestBoxHome::new();
        let options = vmm_runtime::RuntimeOptions::new(home.path())
            .shim_program(ShimProgram::at(program).unwrap())
            .start_timeout(Duration::from_millis(300));
        let runtime = VmmRuntime::open(options).await.unwrap();
        let id = runtime.create(sleeping()).await.unwrap().id;
        let error = runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Start { .. }), "{error:?}");
        let info = runtime.info(&id).await.unwrap();
        assert_eq!(info.status, BoxStatus::Failed);
    }
}

#[tokio::test]
async fn a_box_can_start_once_the_cause_of_the_failure_is_gone() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let program = home.path().join("later");
    let spec = BoxSpec::new([program.to_str().unwrap(), "1000"]);
    let id = runtime.create(spec).await.unwrap().id;
    runtime.start(&id).await.unwrap_err();
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let info = runtime.start(&id).await.unwrap();
    assert_eq!((info.status, info.error), (BoxStatus::Running, None));
}

/// The removal kills the shim at a different moment of its start in every round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_during_a_start_leaves_no_process() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for delay in 0..20 {
        let id = runtime.create(sleeping()).await.unwrap().id;
        let start = runtime.start(&id);
        let remove = async {
            tokio::time::sleep(Duration::from_micros(delay * 400)).await;
            runtime.remove(&id, Removal::Force).await
        };
        let (_, removed) = tokio::join!(start, remove);
        removed.unwrap();
        assert!(!box_dir(&home, &id).exists());
    }
    assert_eq!(runtime.metrics().await.num_running_boxes, 0);
    assert!(runtime.list().await.is_empty());
}

#[tokio::test]
async fn a_forced_removal_interrupts_a_start() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let never_ready = sleeping().ready(Ready::Notified);
    let id = runtime.create(never_ready).await.unwrap().id;
    let start = runtime.start(&id);
    let remove = async {
        let pid_file = box_dir(&home, &id).join("shim.pid");
        eventually("the shim starts", || pid_file.exists()).await;
        assert!(matches!(
            runtime.remove(&id, Removal::Ended).await,
            Err(RuntimeError::Running { .. })
        ));
        runtime.remove(&id, Removal::Force).await
    };
    let (started, removed) = tokio::join!(start, remove);
    assert!(matches!(
        started,
        Err(RuntimeError::Start {
            source: StartError::Interrupted,
            ..
        })
    ));
    removed.unwrap();
    assert!(!box_dir(&home, &id).exists());
}

#[tokio::test]
async fn a_stop_interrupts_a_start() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime
        .create(sleeping().ready(Ready::Notified))
        .await
        .unwrap()
        .id;
    let start = runtime.start(&id);
    let stop = async {
        let pid_file = box_dir(&home, &id).join("shim.pid");
        eventually("the shim starts", || pid_file.exists()).await;
        runtime.stop(&id).await
    };
    let (started, stopped) = tokio::join!(start, stop);
    assert!(matches!(
        started,
        Err(RuntimeError::Start {
            source: StartError::Interrupted,
            ..
        })
    ));
    // As if the box had never been started.
    assert_eq!(stopped.unwrap().status, BoxStatus::Configured);
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.boxes_failed_total, metrics.boxes_stopped_total),
        (0, 0)
    );
    assert!(!box_dir(&home, &id).join("exit").exists());
}

#[tokio::test]
async fn a_stop_interrupts_waiting_starts() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let never_ready = sleeping().ready(Ready::Notified);
    let id = runtime.create(never_ready).await.unwrap().id;
    let starts = join_all((0..3).map(|_| runtime.start(&id)));
    let stop = async {
        let pid_file = box_dir(&home, &id).join("shim.pid");
        eventually("the shim starts", || pid_file.exists()).await;
        runtime.stop(&id).await.unwrap();
    };
    let (starts, ()) = tokio::join!(starts, stop);
    for start in starts {
        assert!(matches!(
            start,
            Err(RuntimeError::Start {
                source: StartError::Interrupted,
                ..
            })
        ));
    }
}

#[tokio::test]
async fn a_failed_start_leaves_no_descendant_of_the_payload() {
    let home = PerTestBoxHome::new();
    let options = options(home.path()).start_timeout(Duration::from_millis(500));
    let runtime = VmmRuntime::open(options).await.unwrap();
    let spec = script("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait");
    let spec = spec.ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    let start = runtime.start(&id);
    let kill = async {
        let orphan = common::boxes::orphan_of(&home, &id).await;
        let shim = box_dir(&home, &id).join("shim.pid");
        let shim = vmm_runtime::PidRecord::read(&shim).unwrap().unwrap();
        common::kill(shim.pid, nix::sys::signal::Signal::SIGKILL);
        orphan
    };
    let (started, orphan) = tokio::join!(start, kill);
    started.unwrap_err();
    eventually("the orphan exits", || common::is_gone(orphan)).await;
}

#[tokio::test]
async fn a_start_continues_after_its_future_is_dropped() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(sleeping()).await.unwrap().id;
    {
        let mut start = std::pin::pin!(runtime.start(&id));
        assert!(poll!(start.as_mut()).is_pending());
    }
    common::boxes::wait_for_status(&runtime, &id, BoxStatus::Running).await;
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_failed_start_keeps_the_exit_code_and_the_last_output_of_its_payload() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("echo loading; echo no such key >&2; exit 3").ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    // The second start reports only what it has printed itself.
    runtime.start(&id).await.unwrap_err();
    let error = runtime.start(&id).await.unwrap_err();
    let exit = Ending::ended_early(Ending::Exited { code: 3 });
    let RuntimeError::Start { source, .. } = &error else {
        panic!("{error:?}");
    };
    let StartError::Failed { record, output } = source else {
        panic!("{source:?}");
    };
    assert_eq!(record.ending, exit);
    let lines = "loading\nno such key";
    assert_eq!(output.as_ref().unwrap().text, lines);
    let expected = format!(
        "cannot start box {id}: the payload ended before it was ready: exited with code 3: its \
         last output is \"loading\\nno such key\""
    );
    assert_eq!(with_causes(&error), expected);
    let info = runtime.info(&id).await.unwrap();
    assert_eq!(
        (info.exit_code, info.ending.as_ref()),
        (Some(3), Some(&exit))
    );
    assert_eq!(info.last_output.as_deref(), Some(lines));
    assert!(expected.ends_with(info.error.as_ref().unwrap()));
    runtime.shutdown(Duration::from_secs(60)).await;
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&id).await.unwrap();
    assert_eq!(
        (found.ending, found.error, found.last_output),
        (info.ending, info.error, info.last_output)
    );
}

#[tokio::test]
async fn a_start_that_times_out_keeps_the_last_output() {
    let home = PerTestBoxHome::new();
    let options = options(home.path()).start_timeout(Duration::from_millis(500));
    let runtime = VmmRuntime::open(options).await.unwrap();
    let spec = script("echo waiting for the database; exec sleep 1000").ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    let mut last = None;
    // On a busy machine, the payload may not have printed before the timeout.
    for _ in 0..100 {
        if last.is_some() {
            break;
        }
        runtime.start(&id).await.unwrap_err();
        last = runtime.info(&id).await.unwrap().last_output;
    }
    assert_eq!(last.unwrap(), "waiting for the database");
}
