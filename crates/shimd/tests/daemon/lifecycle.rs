use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use vmm_rest::wire::{BoxStatus, CreateBoxRequest};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, run_shimd, serve};
use crate::process::{is_gone, kill, state_of};

/// Sends a request as any HTTP client does.
async fn request(home: &PerTestBoxHome, method: Method, path: &str, body: Option<Value>) -> Value {
    let socket = home.path().join("shimd.sock");
    let http = reqwest::Client::builder().unix_socket(socket).build();
    let mut request = http
        .unwrap()
        .request(method, format!("http://localhost{path}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap().error_for_status().unwrap();
    let text = response.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_default()
}

#[tokio::test]
async fn box_removed_by_force_is_gone_and_the_daemon_keeps_running() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let body = json!({"image": "idle", "name": "nap"});
    let made = request(&home, Method::POST, "/v1/boxes", Some(body)).await;
    let path = format!("/v1/boxes/{}", made["box_id"].as_str().unwrap());
    request(&home, Method::POST, &format!("{path}/start"), None).await;

    let inspected = run_shimd(&home, &["inspect", "nap", "--format", "json"]).json();
    let pid = u32::try_from(inspected[0]["pid"].as_u64().unwrap()).unwrap();
    assert!(state_of(pid).is_some());
    let shown = request(&home, Method::GET, &path, None).await;
    assert_eq!(shown["pid"], pid);

    assert_eq!(run_shimd(&home, &["rm", "--force", "nap"]).out(), "nap\n");
    assert!(is_gone(pid), "state {:?}", state_of(pid));
    assert!(daemon.client.readiness().await.unwrap().ready);
    let metrics = run_shimd(&home, &["metrics", "--format", "json"]).json();
    assert_eq!(
        (
            &metrics["shim_reaped"],
            &metrics["shim_reaper_registered"],
            &metrics["num_running_boxes"]
        ),
        (&json!(1), &json!(0), &json!(0))
    );
    daemon.shut_down().await;
}

#[tokio::test]
async fn killed_shim_is_reported() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let id = made.unwrap().box_id;
    let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
    kill(shim, Signal::SIGKILL);
    let failed = daemon.wait_until(&id, BoxStatus::Failed).await;
    assert_eq!((failed.pid, failed.signal), (None, Some(9)));
    assert!(is_gone(shim), "state {:?}", state_of(shim));
    daemon.shut_down().await;
}

#[tokio::test]
async fn image_idle_runs_a_program_of_the_daemon_until_it_is_stopped() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = run_shimd(&home, &["run", "--detach", "idle"]).out();
    let running = daemon.client.inspect(id.trim()).await.unwrap();
    let payload = running.payload_pid.unwrap();
    let program = std::fs::read_link(format!("/proc/{payload}/exe")).unwrap();
    let name = program.file_name().unwrap();
    assert!(name == "shimd" || name == "vmm-shim", "{name:?}");
    run_shimd(&home, &["stop", id.trim()]).out();
    let stopped = daemon.client.inspect(id.trim()).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(15))
    );
    assert!(is_gone(payload));
    daemon.shut_down().await;
}

#[tokio::test]
async fn daemon_with_a_closed_log_keeps_running() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    let (reader, writer) = std::io::pipe().unwrap();
    command.stderr(writer);
    let daemon = Daemon::spawn(&home, command).await;
    drop(reader);
    assert_eq!(
        run_shimd(&home, &["run", "idle", "echo", "hi"]).out(),
        "hi\n"
    );
    let metrics = daemon.client.metrics().await.unwrap();
    assert_eq!((metrics.shim_reaped, metrics.shim_reaper_respawns), (1, 0));
    daemon.shut_down().await;
}
