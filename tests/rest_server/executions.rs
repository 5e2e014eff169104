//! Commands that run in boxes.

use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;
use vmm_rest::wire::{
    BoxStatus, CreateBoxRequest, ErrorCode, ExecRequest, ExecutionStatus, ResizeRequest,
};
use vmm_rest::{ClientError, ExecutionEvent, ExecutionEvents, ExecutionInput, Limits};
use vmm_runtime::Removal;

use crate::common::{DEADLINE, pause, skip};
use crate::fixture::TestServer;

/// Longer than a client that reads takes to respond to a ping on a loaded machine.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(3);

fn shell(script: &str) -> ExecRequest {
    ExecRequest::new("sh", ["-c", script])
}

async fn start_box(service: &TestServer) -> String {
    let bx = service.start_box(CreateBoxRequest::of("idle")).await;
    bx.box_id
}

/// Starts a command, and attaches to it.
async fn run(
    service: &TestServer,
    id: &str,
    request: &ExecRequest,
) -> (String, ExecutionInput, ExecutionEvents) {
    let execution = service.client.exec(id, request).await.unwrap().execution_id;
    let (input, events) = service.client.attach(id, &execution).await.unwrap();
    (execution, input, events)
}

async fn next(events: &mut ExecutionEvents) -> Option<ExecutionEvent> {
    let event = timeout(DEADLINE, events.next()).await;
    event.expect("the stream hangs").map(Result::unwrap)
}

/// Returns the stdout, the stderr and the exit code of an execution.
async fn finish(events: &mut ExecutionEvents) -> (String, String, i32) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match next(events).await.expect("the execution has not ended") {
            ExecutionEvent::Stdout(data) => stdout.extend(data),
            ExecutionEvent::Stderr(data) => stderr.extend(data),
            ExecutionEvent::Exited { exit_code } => {
                assert_eq!(next(events).await, None);
                let text = |data| String::from_utf8(data).unwrap();
                return (text(stdout), text(stderr), exit_code);
            }
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_starts_its_box_and_returns_its_output_and_exit_code() {
    let service = TestServer::start().await;
    let bx = service.client.create(&CreateBoxRequest::of("idle")).await;
    let id = bx.unwrap().box_id;
    let body = json!({
        "command": "sh", "args": ["-c", "echo $COLOR; pwd >&2; exit 42"],
        "env": {"COLOR": "blue"}, "working_dir": "/usr",
    });
    let target = format!("/v1/boxes/{id}/exec");
    let reply = service.send(Method::POST, &target, &body.to_string()).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    let execution = reply.json()["execution_id"].as_str().unwrap().to_owned();
    let location = format!("/v1/boxes/{id}/executions/{execution}");
    assert_eq!(reply.headers["location"], location.as_str());

    let (_, mut events) = service.client.attach(&id, &execution).await.unwrap();
    let ended = ("blue\n".to_owned(), "/usr\n".to_owned(), 42);
    assert_eq!(finish(&mut events).await, ended);
    let reply = service.send(Method::GET, &location, "").await;
    assert_eq!(reply.json()["status"], "completed");
    assert_eq!(reply.json()["exit_code"], 42);
    assert!(reply.json()["duration_ms"].is_u64(), "{reply:?}");
    let listed = service.client.executions(&id).await.unwrap();
    let info = service.client.execution(&id, &execution).await.unwrap();
    assert_eq!(listed, [info]);
    service.shut_down().await;
}

#[tokio::test]
async fn a_command_reads_its_input_until_the_client_closes_it() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let (_, mut input, mut events) = run(&service, &id, &shell("cat; exit 5")).await;
    // More than all buffers on the way hold.
    let line = [b"0123456789\n".as_slice(); 10_000].concat();
    let write = async {
        for _ in 0..20 {
            input.write(line.clone()).await.unwrap();
        }
        input.close().await.unwrap();
    };
    let ((), (stdout, _, exit_code)) = tokio::join!(write, finish(&mut events));
    assert_eq!((stdout.len(), exit_code), (20 * line.len(), 5));
    service.shut_down().await;
}

#[tokio::test]
async fn an_execution_goes_on_without_its_client_and_has_one_at_a_time() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let script = "read a; echo $a; read b; echo $b; exit 3";
    let (execution, mut input, mut events) = run(&service, &id, &shell(script)).await;
    input.write("one\n").await.unwrap();
    let output = ExecutionEvent::Stdout(b"one\n".to_vec());
    assert_eq!(next(&mut events).await, Some(output));
    let second = service.client.attach(&id, &execution).await.unwrap_err();
    assert_eq!(second.code(), Some(ErrorCode::InvalidState));
    assert!(matches!(second, ClientError::Refused { status: 409, .. }));
    drop((input, events));

    let (mut input, mut events) = service.client.attach(&id, &execution).await.unwrap();
    input.write("two\n").await.unwrap();
    assert_eq!(finish(&mut events).await, ("two\n".into(), "".into(), 3));
    service.shut_down().await;
}

#[tokio::test]
async fn a_terminal_is_resized_over_both_ways() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let mut request = shell("trap 'stty size' WINCH; stty size; while :; do sleep 0.01; done");
    request.tty = Some(true);
    let (execution, mut input, mut events) = run(&service, &id, &request).await;
    let mut expect = async |expected: &str| {
        let mut text = String::new();
        while !text.contains(expected) {
            match next(&mut events).await {
                Some(ExecutionEvent::Stdout(data)) => {
                    text.push_str(&String::from_utf8(data).unwrap());
                }
                event => panic!("{event:?}"),
            }
        }
    };
    expect("24 80\r\n").await;
    input.resize(&ResizeRequest::new(100, 50)).await.unwrap();
    expect("50 100\r\n").await;
    let size = ResizeRequest::new(70, 30);
    let resized = service.client.resize_execution(&id, &execution, &size);
    resized.await.unwrap();
    expect("30 70\r\n").await;
    service.shut_down().await;
}

#[tokio::test]
async fn a_terminal_is_resized_while_its_command_does_not_read() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    // A terminal that is not raw discards what does not fit.
    let script = "stty raw -echo; trap 'stty size' WINCH; echo up; while :; do sleep 0.01; done";
    let mut request = shell(script);
    request.tty = Some(true);
    let (_, mut input, mut events) = run(&service, &id, &request).await;
    let mut expect = async |expected: &str| {
        let mut text = String::new();
        while !text.contains(expected) {
            match next(&mut events).await {
                Some(ExecutionEvent::Stdout(data)) => {
                    text.push_str(&String::from_utf8(data).unwrap());
                }
                event => panic!("{event:?}"),
            }
        }
    };
    expect("up").await;
    // More than all buffers between the server and the command hold.
    for _ in 0..100 {
        input.write([b'x'; 10_000]).await.unwrap();
    }
    input.resize(&ResizeRequest::new(100, 50)).await.unwrap();
    expect("50 100").await;
    service.shut_down().await;
}

#[tokio::test]
async fn a_client_that_does_not_respond_to_pings_is_replaced() {
    let limits = Limits::default().attach_timeout(ATTACH_TIMEOUT);
    let service = TestServer::with_limits(limits).await;
    let id = start_box(&service).await;
    let (execution, _input, _unread) = run(&service, &id, &shell("sleep 1000")).await;
    let attach = async {
        loop {
            if let Ok(attached) = service.client.attach(&id, &execution).await {
                return attached;
            }
            pause().await;
        }
    };
    let (_, mut events) = timeout(DEADLINE, attach).await.expect("still attached");
    // This one responds to pings, and stays.
    let silence = timeout(ATTACH_TIMEOUT * 2, events.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    service.shut_down().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_stays_attached() {
    let limits = Limits::default().attach_timeout(ATTACH_TIMEOUT);
    let service = TestServer::with_limits(limits).await;
    let id = start_box(&service).await;
    let (_, _input, mut events) = run(&service, &id, &shell("echo one; sleep 6; exit 3")).await;
    tokio::time::sleep(ATTACH_TIMEOUT * 2).await;
    assert_eq!(finish(&mut events).await, ("one\n".into(), "".into(), 3));
    service.shut_down().await;
}

#[tokio::test]
async fn an_execution_is_signalled_and_killed() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let (execution, _, mut events) = run(&service, &id, &shell("sleep 1000")).await;
    let signal = service.client.signal_execution(&id, &execution, 15);
    signal.await.unwrap();
    assert_eq!(finish(&mut events).await.2, -15);
    let info = service.client.execution(&id, &execution).await.unwrap();
    assert_eq!(info.status, ExecutionStatus::Killed);
    let again = service.client.signal_execution(&id, &execution, 15);
    assert_eq!(
        again.await.unwrap_err().code(),
        Some(ErrorCode::InvalidState)
    );

    let execution = service.client.exec(&id, &shell("sleep 1000")).await;
    let execution = execution.unwrap().execution_id;
    let killed = service.client.remove_execution(&id, &execution);
    killed.await.unwrap();
    let gone = service.client.execution(&id, &execution).await;
    assert_eq!(gone.unwrap_err().code(), Some(ErrorCode::NotFound));
    // The client that has started it still gets the end.
    let (_, mut events) = service.client.attach(&id, &execution).await.unwrap();
    assert_eq!(finish(&mut events).await.2, -9);
    service.shut_down().await;
}

#[tokio::test]
async fn an_execution_is_killed_when_its_timeout_is_over() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let mut request = shell("sleep 1000");
    request.timeout_seconds = Some(0.1);
    let (execution, _, mut events) = run(&service, &id, &request).await;
    assert_eq!(finish(&mut events).await.2, -9);
    let info = service.client.execution(&id, &execution).await.unwrap();
    assert_eq!(info.status, ExecutionStatus::TimedOut);
    assert_eq!(info.exit_code, Some(-9));
    service.shut_down().await;
}

#[tokio::test]
async fn a_command_that_no_client_could_attach_to_is_not_started() {
    let service = TestServer::with_limits(Limits::default().streams(1)).await;
    let id = start_box(&service).await;
    let reader = service.client.events().await.unwrap();
    let error = service.client.exec(&id, &shell("")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted));
    assert_eq!(service.client.executions(&id).await.unwrap(), []);
    drop(reader);
    let deadline = Instant::now() + DEADLINE;
    // Until the server notices that the reader is gone.
    while let Err(error) = service.client.exec(&id, &shell("")).await {
        assert!(Instant::now() < deadline, "{error}");
        pause().await;
    }
    service.shut_down().await;
}

#[tokio::test]
async fn invalid_requests_for_executions_are_rejected() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let execution = service.client.exec(&id, &shell("sleep 1000")).await;
    let execution = execution.unwrap().execution_id;
    let of_box = format!("/v1/boxes/{id}");
    let exec = format!("{of_box}/exec");
    let of_execution = format!("{of_box}/executions/{execution}");
    let missing = format!("{of_box}/executions/exec-0");
    let (post, get) = (Method::POST, Method::GET);
    for (method, target, body, status) in [
        (&post, exec.as_str(), "{}", 400),
        (&post, &exec, r#"{"command": ""}"#, 400),
        (&post, &exec, r#"{"command": "a\u0000"}"#, 400),
        (
            &post,
            &exec,
            r#"{"command": "true", "env": {"A=B": ""}}"#,
            400,
        ),
        (
            &post,
            &exec,
            r#"{"command": "true", "working_dir": "x"}"#,
            400,
        ),
        (
            &post,
            &exec,
            r#"{"command": "true", "timeout_seconds": 0}"#,
            400,
        ),
        (&post, &exec, r#"{"command": "/nonexistent"}"#, 422),
        (
            &post,
            "/v1/boxes/missing/exec",
            r#"{"command": "true"}"#,
            404,
        ),
        (&get, "/v1/boxes/missing/executions", "", 404),
        (&get, &missing, "", 404),
        (&Method::DELETE, &missing, "", 404),
        (&get, &format!("{missing}/attach"), "", 404),
        (&get, &format!("{of_execution}/attach"), "", 400),
        (
            &post,
            &format!("{missing}/signal"),
            r#"{"signal": 15}"#,
            404,
        ),
        (
            &post,
            &format!("{of_execution}/signal"),
            r#"{"signal": 9}"#,
            400,
        ),
        (
            &post,
            &format!("{of_execution}/signal"),
            r#"{"signal": 0}"#,
            400,
        ),
        (
            &post,
            &format!("{of_execution}/resize"),
            r#"{"cols": 0, "rows": 1}"#,
            400,
        ),
        (
            &post,
            &format!("{of_execution}/resize"),
            r#"{"cols": 2, "rows": 1}"#,
            409,
        ),
    ] {
        let reply = service.send(method.clone(), target, body).await;
        assert_eq!(reply.status, status, "{target} {body}: {reply:?}");
    }
    service.client.stop(&id, &Default::default()).await.unwrap();
    assert_eq!(service.client.executions(&id).await.unwrap(), []);
    let gone = service.client.attach(&id, &execution).await.unwrap_err();
    assert_eq!(gone.code(), Some(ErrorCode::NotFound));
    service.shut_down().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_neither_others_nor_the_shutdown() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let (_, _input, _unread) = run(&service, &id, &shell("yes")).await;
    let (_, _, mut events) = run(&service, &id, &shell("echo hello")).await;
    assert_eq!(finish(&mut events).await.0, "hello\n");
    service.shut_down().await;
}

#[tokio::test]
async fn a_shutdown_ends_the_connection_and_an_execution_of_a_detached_box_goes_on() {
    let mut service = TestServer::start().await;
    let mut request = CreateBoxRequest::of("idle");
    request.detach = Some(true);
    let id = service.start_box(request).await.box_id;
    let (execution, _input, mut events) = run(&service, &id, &shell("echo up; read x")).await;
    let output = ExecutionEvent::Stdout(b"up\n".to_vec());
    assert_eq!(next(&mut events).await, Some(output));
    service.stop_server().await;
    let ended = async { while let Some(Ok(_)) = events.next().await {} };
    timeout(DEADLINE, ended).await.expect("the stream hangs");
    // The stdin stays open.
    for _ in 0..10 {
        pause().await;
        let listed = service.runtime.executions(&id).await.unwrap();
        assert_eq!((&listed[0].id, &listed[0].ending), (&execution, &None));
    }
    service.runtime.remove(&id, Removal::Force).await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn a_box_is_paused_and_resumed() {
    let service = TestServer::start().await;
    let id = start_box(&service).await;
    let target = format!("/v1/boxes/{id}/pause");
    let reply = service.send(Method::POST, &target, "").await;
    if reply.status == 400 && reply.code() == "unsupported" {
        assert!(reply.message().contains("version 2"), "{reply:?}");
        skip("this host has no freezer of version 2");
        return service.shut_down().await;
    }
    assert_eq!(
        (reply.status, &reply.json()["status"]),
        (200, &"paused".into())
    );
    let listed = service
        .send(Method::GET, "/v1/boxes?status=paused", "")
        .await;
    assert_eq!(listed.json()["boxes"][0]["box_id"], id.as_str());
    let refused = service.client.exec(&id, &shell("true")).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::InvalidState));
    let text = service.client.exposition().await.unwrap();
    assert!(text.contains("vmm_boxes{status=\"paused\"} 1"), "{text}");
    let resumed = service.client.resume(&id).await.unwrap();
    assert_eq!(resumed.status, BoxStatus::Running);
    service.client.stop(&id, &Default::default()).await.unwrap();
    let refused = service.client.pause(&id).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::InvalidState));
    service.shut_down().await;
}
