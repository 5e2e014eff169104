//! The command `delete`, for servers that do not run: without containerd and without a guest.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{DeleteResponse, Empty, ForwardRequest};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::{self};
use tempfile::TempDir;
use vmm_protocol::PidRecord;

const TIMEOUT: Duration = Duration::from_secs(60);

/// After this time, containerd kills a `delete`.
const CONTAINERD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a killed server has left: the bundle of the container `c`, which has exited with 42, and the directory of a pod.
struct Killed {
    dir: TempDir,
}

impl Killed {
    fn new() -> Self {
        let killed = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(killed.state().join("home")).unwrap();
        fs::create_dir_all(killed.bundle()).unwrap();
        let address = format!("unix://{}", killed.state().join("s").display());
        killed.write("address", &address);
        let exit = r#"{"code":42,"at":"2026-01-02T03:04:05Z","pid":7,"is_published":false}"#;
        killed.write("vmm-exit.json", exit);
        killed
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundles/c")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("pods/p")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.bundle().join(name), text).unwrap();
    }

    /// Records that the server was started for this container.
    fn set_owner(&self, id: &str) {
        let owner = serde_json::json!({
            "namespace": "default", "id": id, "bundle": self.bundle(),
        });
        fs::write(self.state().join("owner.json"), owner.to_string()).unwrap();
    }

    fn delete(&self, containerd: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_containerd-shim-vmm-v1"))
            .args(["-namespace", "default", "-id", "c", "-bundle"])
            .arg(self.bundle())
            .arg("delete")
            .env("TTRPC_ADDRESS", containerd)
            .output()
            .unwrap()
    }
}

fn exit_status(output: &Output) -> u32 {
    assert!(output.status.success(), "{output:?}");
    DeleteResponse::parse_from_bytes(&output.stdout)
        .unwrap()
        .exit_status
}

#[test]
fn a_delete_returns_the_exit_in_time_and_cleans_up_later() {
    let killed = Killed::new();
    killed.set_owner("c");
    // As a server that still runs, or a guest that is slow to end.
    let lock = File::create(killed.state().join("home/lock")).unwrap();
    lock.try_lock().unwrap();
    let start = Instant::now();
    assert_eq!(exit_status(&killed.delete("")), 42);
    assert!(
        start.elapsed() < CONTAINERD_TIMEOUT,
        "{:?}",
        start.elapsed()
    );
    assert!(killed.state().exists());
    drop(lock);
    while killed.state().exists() {
        assert!(
            start.elapsed() < TIMEOUT,
            "the directory of the pod is left"
        );
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_container_without_a_readable_spec_does_not_end_the_pod_of_another() {
    let killed = Killed::new();
    killed.set_owner("sandbox");
    assert_eq!(exit_status(&killed.delete("")), 42);
    assert!(killed.state().join("home").exists());

    // Whose pod it is, is not known.
    fs::remove_file(killed.state().join("owner.json")).unwrap();
    assert!(!killed.delete("").status.success());
    assert!(killed.state().join("home").exists());

    killed.set_owner("c");
    assert_eq!(exit_status(&killed.delete("")), 42);
    assert!(!killed.state().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_hangs_is_killed_and_the_exit_of_its_container_is_reported() {
    let killed = Killed::new();
    killed.set_owner("c");
    killed.write("vmm-containerd.json", r#"{"pid":1}"#);
    let events = killed.state().join("events");
    fs::create_dir(&events).unwrap();
    // It has the home and the events of the pod.
    let home = killed.state().join("home/lock");
    let mut hanging = Command::new("flock")
        .args(["--no-fork".as_ref(), home.as_os_str()])
        .args(["flock".as_ref(), "--no-fork".as_ref(), events.as_os_str()])
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    let is_locked = || File::open(&events).unwrap().try_lock().is_err();
    while !is_locked() {
        sleep(Duration::from_millis(20));
    }
    let record = PidRecord::of(hanging.id()).unwrap().unwrap();
    record.write(&killed.state().join("process.json")).unwrap();
    let containerd = Arc::new(Containerd::default());
    let (mut server, address) = serve(&killed, &containerd).await;
    assert_eq!(exit_status(&killed.delete(&address)), 42);
    assert!(containerd.exits().is_empty());
    let start = Instant::now();
    while killed.state().exists() {
        assert!(
            start.elapsed() < TIMEOUT,
            "the directory of the pod is left"
        );
        sleep(Duration::from_millis(50));
    }
    assert_eq!(containerd.exits(), ["c"]);
    assert!(!hanging.wait().unwrap().success());
    server.shutdown().await.unwrap();
}

/// A containerd that receives events.
#[derive(Default)]
struct Containerd {
    events: Mutex<Vec<Envelope>>,
}

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        self.events.lock().unwrap().push(envelope);
        Ok(Empty::new())
    }
}

impl Containerd {
    /// Returns the containers whose exits have been received.
    fn exits(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let exits = events.iter().map(|envelope| {
            let value = &envelope.event.as_ref().unwrap().value;
            TaskExit::parse_from_bytes(value).unwrap().container_id
        });
        exits.collect()
    }
}

/// Serves a containerd. Returns its address.
async fn serve(killed: &Killed, containerd: &Arc<Containerd>) -> (Server, String) {
    let address = format!("unix://{}", killed.dir.path().join("containerd").display());
    let server = Server::new().bind(&address).unwrap();
    let mut server = server.register_service(create_events(containerd.clone()));
    server.start().await.unwrap();
    (server, address)
}

fn write_exit(dir: &Path, id: &str) {
    let mut exit = TaskExit::new();
    exit.container_id = id.to_owned();
    exit.id = id.to_owned();
    let mut envelope = Envelope::new();
    envelope.topic = "/tasks/exit".to_owned();
    envelope.event = Some(Any {
        type_url: TaskExit::descriptor().full_name().to_owned(),
        value: exit.write_to_bytes().unwrap(),
        ..Any::default()
    })
    .into();
    fs::create_dir_all(dir).unwrap();
    fs::write(
        dir.join(format!("{:020}", 0)),
        envelope.write_to_bytes().unwrap(),
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_exit_that_a_killed_server_has_added_is_not_added_again() {
    for queued in ["c", "other"] {
        let killed = Killed::new();
        killed.set_owner("c");
        // An earlier containerd, so this one does not publish the exit.
        killed.write("vmm-containerd.json", r#"{"pid":1}"#);
        write_exit(&killed.state().join("events"), queued);
        let containerd = Arc::new(Containerd::default());
        let (mut server, address) = serve(&killed, &containerd).await;
        assert_eq!(exit_status(&killed.delete(&address)), 42);
        let exits = containerd.exits();
        match queued {
            "c" => assert_eq!(exits, ["c"]),
            _ => assert_eq!(exits, ["other", "c"]),
        }
        assert!(!killed.state().exists());
        server.shutdown().await.unwrap();
    }
}
