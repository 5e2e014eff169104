//! Commands that run in a box beside its payload.

mod common;

use std::time::Instant;

use common::boxes::{open_runtime, script, sleeping, start_box};
use common::slow_reader::assert_memory_is_flat;
use common::{DEADLINE, eventually, is_gone, kill, pause};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    Ending, ExecError, ExecSpec, FailureKind, Removal, RequestErrorKind, RuntimeError,
    TerminalSize, with_causes,
};

fn shell(script: &str) -> ExecSpec {
    ExecSpec::new("", ["sh", "-c", script])
}

#[tokio::test]
async fn a_command_returns_its_output_and_its_exit_code() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping().env("COLOR", "blue"))
        .await
        .id;
    let spec = shell("echo $COLOR; echo $VMM_BOX_ID >&2; exit 42");
    let execution = runtime.exec(&id, spec).await.unwrap();
    assert!(execution.id().starts_with("exec-"), "{}", execution.id());
    let output = execution.output().await.unwrap();
    assert_eq!(output.ending, Ending::Exited { code: 42 });
    assert_eq!(output.stdout, b"blue\n");
    assert_eq!(output.stderr, format!("{id}\n").as_bytes());
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn the_streams_of_a_command_are_readers_and_writers() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let mut spec = shell("cat");
    spec.stdin = true;
    let mut execution = runtime.exec(&id, spec).await.unwrap();
    let mut stdin = execution.stdin.take().unwrap();
    let mut stdout = execution.stdout.take().unwrap();
    // More than all buffers on the way hold.
    let data: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
    let sent = data.clone();
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, stdout.read_to_end(&mut received));
    read.unwrap();
    assert!(received == data);
    assert_eq!(execution.wait().await.unwrap(), Ending::Exited { code: 0 });
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn the_last_signal_is_sent_although_the_execution_is_dropped() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let execution = runtime.exec(&id, shell("sleep 1000")).await.unwrap();
        ids.push(execution.id().to_owned());
        execution.signal(15).unwrap();
        drop(execution);
    }
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut listed = runtime.executions(&id).await.unwrap();
        listed.retain(|execution| execution.ending.is_none());
        if listed.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{listed:?}");
        pause().await;
    }
    for execution in runtime.executions(&id).await.unwrap() {
        assert_eq!(execution.ending, Some(Ending::Signaled { signal: 15 }));
    }
    assert_eq!(runtime.executions(&id).await.unwrap().len(), ids.len());
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn much_output_and_a_slow_reader_do_not_grow_memory() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    assert_memory_is_flat(&runtime, &bx).await;
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_resized_and_its_command_gets_signals() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let mut spec = shell(
        "trap 'stty size' WINCH; trap 'exit 7' TERM; stty size; while :; do sleep 0.01; done",
    );
    spec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    let mut execution = runtime.exec(&id, spec).await.unwrap();
    let mut stdout = execution.stdout.take().unwrap();
    let mut text = Vec::new();
    for (expected, size) in [("24 80", Some((50, 100))), ("50 100", None)] {
        while !String::from_utf8_lossy(&text).contains(expected) {
            assert_ne!(stdout.read_buf(&mut text).await.unwrap(), 0);
        }
        if let Some((rows, cols)) = size {
            execution.resize(TerminalSize { rows, cols }).unwrap();
        }
    }
    execution.signal(15).unwrap();
    assert_eq!(execution.wait().await.unwrap(), Ending::Exited { code: 7 });
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_an_error_with_the_cause() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(sleeping()).await.unwrap();
    let error = runtime.exec(&bx.id, shell("true")).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning { .. }), "{error}");
    runtime.start(&bx.id).await.unwrap();
    let missing = ExecSpec::new("", ["/nonexistent"]);
    let error = runtime.exec(&bx.id, missing).await.unwrap_err();
    let text = with_causes(&error);
    assert!(text.ends_with("program not found: /nonexistent"), "{text}");
    let RuntimeError::Exec { source, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(
        source,
        ExecError::Start {
            kind: FailureKind::NotFound,
            ..
        }
    ));
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn executions_of_a_detached_box_go_on_without_a_runtime() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping().detached(true)).await.id;
    let mut spec = shell("read line; echo got $line; exit 3");
    spec.stdin = true;
    let execution = runtime.exec(&id, spec).await.unwrap().id().to_owned();
    drop(runtime);

    let runtime = open_runtime(&home).await;
    let listed = runtime.executions(&id).await.unwrap();
    assert_eq!((listed.len(), &listed[0].id), (1, &execution));
    assert_eq!(listed[0].ending, None);
    let mut attached = runtime.attach(&id, &execution).await.unwrap();
    let error = runtime.attach(&id, &execution).await.unwrap_err();
    let RuntimeError::Exec { source, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(
        source,
        ExecError::Refused(error) if error.kind == RequestErrorKind::InUse
    ));
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"it\n").await.unwrap();
    let output = attached.output().await.unwrap();
    assert_eq!(output.stdout, b"got it\n");
    assert_eq!(output.ending, Ending::Exited { code: 3 });
    let listed = runtime.executions(&id).await.unwrap();
    assert_eq!(listed[0].ending, Some(Ending::Exited { code: 3 }));
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn commands_and_what_they_leave_end_with_the_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, script("sleep 1000")).await.id;
    let spec = shell("setsid sleep 1000 >/dev/null & echo $!; sleep 1000");
    let mut execution = runtime.exec(&id, spec).await.unwrap();
    let mut line = [0; 16];
    let mut stdout = execution.stdout.take().unwrap();
    let length = stdout.read(&mut line).await.unwrap();
    let orphan: u32 = String::from_utf8_lossy(&line[..length])
        .trim()
        .parse()
        .unwrap();
    runtime.stop(&id).await.unwrap();
    assert_eq!(
        execution.wait().await.unwrap(),
        Ending::Signaled { signal: 9 }
    );
    eventually("the orphan is gone", || is_gone(orphan)).await;
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_command_that_was_started_keeps_its_output_for_a_client_that_attaches() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    // More than the shim keeps of an execution that a client has left.
    let script = "seq 30000; touch $VMM_BOX_DIR/up; seq 30000; exit 4";
    let execution = runtime.start_execution(&id, shell(script));
    let execution = execution.await.unwrap();
    let up = home.path().join("boxes").join(id.as_str()).join("up");
    eventually("the command has written", || up.exists()).await;
    let attached = runtime.attach(&id, &execution).await.unwrap();
    let output = attached.output().await.unwrap();
    assert_eq!(output.stdout.len(), 2 * 168_894);
    assert_eq!(output.ending, Ending::Exited { code: 4 });
    let missing = ExecSpec::new("", ["/nonexistent"]);
    let error = runtime.start_execution(&id, missing).await.unwrap_err();
    let text = with_causes(&error);
    assert!(text.ends_with("program not found: /nonexistent"), "{text}");
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn an_execution_gets_signals_and_sizes_and_is_removed_without_a_client() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let mut spec = shell(
        "trap 'stty size >$VMM_BOX_DIR/size' WINCH; trap 'exit 7' TERM; \
                          touch $VMM_BOX_DIR/up; while :; do sleep 0.01; done",
    );
    spec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    let execution = runtime.start_execution(&id, spec).await.unwrap();
    let dir = home.path().join("boxes").join(id.as_str());
    eventually("the command is up", || dir.join("up").exists()).await;
    let size = TerminalSize { rows: 5, cols: 6 };
    let resized = runtime.resize_execution(&id, &execution, size);
    resized.await.unwrap();
    let size = || std::fs::read_to_string(dir.join("size")).unwrap_or_default();
    eventually("the terminal is resized", || size() == "5 6\n").await;
    runtime.signal_execution(&id, &execution, 15).await.unwrap();
    let attached = runtime.attach(&id, &execution).await.unwrap();
    assert_eq!(attached.wait().await.unwrap(), Ending::Exited { code: 7 });
    let error = runtime.signal_execution(&id, &execution, 15).await;
    let text = with_causes(&error.unwrap_err());
    assert!(text.ends_with("the execution has ended"), "{text}");
    runtime.remove_execution(&id, &execution).await.unwrap();
    assert_eq!(runtime.executions(&id).await.unwrap(), []);
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn the_list_shows_which_execution_has_timed_out() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    for timeout_millis in [None, Some(1)] {
        let mut spec = shell("sleep 1000");
        spec.timeout_millis = timeout_millis;
        let execution = runtime.exec(&id, spec).await.unwrap();
        if timeout_millis.is_none() {
            execution.signal(9).unwrap();
        }
        let ending = execution.wait().await.unwrap();
        assert_eq!(ending, Ending::Signaled { signal: 9 });
        let listed = runtime.executions(&id).await.unwrap();
        let listed = listed.iter().find(|it| it.id == execution.id()).unwrap();
        assert_eq!(listed.timed_out, timeout_millis.is_some());
    }
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_command_whose_shim_is_killed_is_interrupted() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let execution = runtime.exec(&bx.id, shell("sleep 1000")).await.unwrap();
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = execution.wait().await;
    assert!(matches!(ended, Err(ExecError::Interrupted)), "{ended:?}");
    // Then the command does not run any more either.
    runtime.wait(&bx.id).await.unwrap();
}
