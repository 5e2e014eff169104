//! The program without a containerd: a bundle, the server of a pod, and a receiver of its events.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, ForwardRequest, KillRequest, ShutdownRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::events::task::{TaskDelete, TaskExit, TaskStart};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::ttrpc::{self, Code, Server, TtrpcContext, context};
use containerd_shim_protos::{Client, Events, TaskClient, create_events};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image;

/// How long anything may take. A guest boots in 2 s on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The program.
pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-vmm-v1");

/// The ID of the container for which the server is started.
pub(crate) const POD: &str = "pod";

/// The server of a pod, whose containers run busybox.
pub(crate) struct TestPod {
    dir: TempDir,
    address: String,
    /// What `start` has printed.
    pub(crate) printed: Vec<u8>,
    events: Arc<Receiver>,
    _server: Server,
}

/// What a pod has reported: the topic, such as `exit`, the ID of the process, and the exit code.
#[derive(Default)]
pub(crate) struct Receiver(Mutex<Vec<(String, String, u32)>>);

impl Events for Receiver {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        let topic = envelope.topic.trim_start_matches("/tasks/").to_owned();
        let event = envelope.event.unwrap();
        let (process, code) = match topic.as_str() {
            "exit" => {
                let exit: TaskExit = parse(&event);
                (exit.id, exit.exit_status)
            }
            "start" => (parse::<TaskStart>(&event).container_id, 0),
            "delete" => {
                let delete: TaskDelete = parse(&event);
                (delete.container_id, delete.exit_status)
            }
            _ => (String::new(), 0),
        };
        self.0.lock().unwrap().push((topic, process, code));
        Ok(Empty::new())
    }
}

fn parse<M: MessageFull>(event: &Any) -> M {
    M::parse_from_bytes(&event.value).unwrap()
}

impl TestPod {
    /// Starts a server; `None`, after a message, if this host cannot run guests.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(|_, _| Vec::new())
    }

    /// Starts a server. The function returns what `start` reads, for the directory and the address of the events.
    pub(crate) fn start_with(input: impl FnOnce(&Path, &str) -> Vec<u8>) -> Option<Self> {
        Self::start_for(None, input)
    }

    /// Starts a server for a sandbox with this `oom_score_adj`.
    pub(crate) fn start_with_oom_score(score: i32) -> Option<Self> {
        Self::start_for(Some(score), |_, _| Vec::new())
    }

    fn start_for(
        oom_score: Option<i32>,
        input: impl FnOnce(&Path, &str) -> Vec<u8>,
    ) -> Option<Self> {
        let files = image::find_files()?;
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let guest = image::build_image(&files, dir.path());
        let config = json!({
            "state_dir": dir.path().join("pods"),
            "guest": {
                "engine": "qemu",
                "memory_mib": 256,
                "options": {
                    "kernel": guest.kernel(),
                    "initrd": guest.initrd(),
                    "cmdline": "quiet",
                    "accelerator": "tcg",
                    "agent": true
                }
            }
        });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let events = Arc::new(Receiver::default());
        let events_address = format!("unix://{}", dir.path().join("events").display());
        let mut server = Server::new()
            .bind(&events_address)
            .unwrap()
            .register_service(create_events(
                Arc::clone(&events) as Arc<dyn Events + Send + Sync>
            ));
        server.start().unwrap();
        let input = input(dir.path(), &events_address);
        let mut pod = Self {
            dir,
            address: String::new(),
            printed: Vec::new(),
            events,
            _server: server,
        };
        let mut spec = container_spec(&["sleep", "infinity"]);
        if let Some(score) = oom_score {
            spec["process"]["oomScoreAdj"] = json!(score);
        }
        let bundle = pod.make_bundle(POD, &spec);
        let output = pod.start_program(&bundle, &events_address, &input);
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let begin = printed.find("unix://").expect("an address");
        let end = printed[begin..].find("/s").unwrap() + 2;
        pod.address = printed[begin..begin + end].to_owned();
        pod.printed = output.stdout;
        Some(pod)
    }

    fn start_program(&self, bundle: &Path, events_address: &str, input: &[u8]) -> Output {
        let stdin = self.path("stdin");
        fs::write(&stdin, input).unwrap();
        Command::new(SHIM)
            .args([
                "-namespace",
                "test",
                "-address",
                "/none",
                "-id",
                POD,
                "start",
            ])
            .current_dir(bundle)
            .env("CONTAINERD_SHIM_VMM_CONFIG", self.path("config.json"))
            .env("TTRPC_ADDRESS", events_address)
            .stdin(fs::File::open(stdin).unwrap())
            .stderr(Stdio::inherit())
            .output()
            .unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns a connection to the server.
    pub(crate) fn client(&self) -> TaskClient {
        TaskClient::new(Client::connect(&self.address).unwrap())
    }

    /// Makes the bundle of a container with busybox that has this OCI spec.
    fn make_bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.path(id);
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(self.path("root/bin/busybox"), bin.join("busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "grep", "yes"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// Creates a container with its bundle. Its stdout has this path or URI.
    pub(crate) fn create(&self, id: &str, command: &[&str], stdout: &str) {
        self.try_create(id, command, stdout).unwrap();
    }

    pub(crate) fn try_create(
        &self,
        id: &str,
        command: &[&str],
        stdout: &str,
    ) -> ttrpc::Result<CreateTaskResponse> {
        self.create_with_spec(id, &container_spec(command), stdout)
    }

    /// Creates a container with this OCI spec.
    fn create_with_spec(
        &self,
        id: &str,
        spec: &Value,
        stdout: &str,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let request = self.create_request(id, spec, stdout);
        self.client().create(timeout(), &request)
    }

    /// Makes the bundle of a container, and returns the request that creates it.
    pub(crate) fn create_request(&self, id: &str, spec: &Value, stdout: &str) -> CreateTaskRequest {
        let bundle = self.make_bundle(&format!("bundle-{id}"), spec);
        let mut request = CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.to_string_lossy().into_owned();
        request.stdout = stdout.to_owned();
        request
    }

    /// Starts a process of a container: the first one if `exec_id` is empty.
    pub(crate) fn start_process(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = StartRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        let started = self.client().start(timeout(), &request)?;
        Ok(started.pid)
    }

    /// Creates and starts a container.
    pub(crate) fn run(&self, id: &str, command: &[&str], stdout: &str) {
        self.create(id, command, stdout);
        self.start_process(id, "").unwrap();
    }

    /// Creates and starts a container with this OCI spec.
    pub(crate) fn run_with_spec(&self, id: &str, spec: &Value) {
        self.create_with_spec(id, spec, "").unwrap();
        self.start_process(id, "").unwrap();
    }

    /// Runs a container with this OCI spec to its end, and deletes it. Returns its output and its exit code.
    pub(crate) fn run_spec(&self, id: &str, spec: &Value) -> (String, u32) {
        let output = self.path(&format!("output-{id}"));
        let uri = format!("file://{}", output.display());
        self.create_with_spec(id, spec, &uri).unwrap();
        self.start_process(id, "").unwrap();
        self.wait(id, "");
        let code = self.delete(id, "").unwrap().exit_status;
        (fs::read_to_string(output).unwrap(), code)
    }

    /// Waits until a process has ended. Returns the exit code.
    pub(crate) fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let mut request = WaitRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        let ended = self.client().wait(timeout(), &request);
        ended.unwrap().exit_status
    }

    /// Adds a process to a container.
    pub(crate) fn exec(&self, id: &str, exec_id: &str, command: &[&str]) -> ttrpc::Result<()> {
        self.exec_with_spec(id, exec_id, &process_spec(command), "")
    }

    /// Adds a process with this OCI spec to a container. Its stdout has this path or URI.
    pub(crate) fn exec_with_spec(
        &self,
        id: &str,
        exec_id: &str,
        spec: &Value,
        stdout: &str,
    ) -> ttrpc::Result<()> {
        let mut request = ExecProcessRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        request.stdout = stdout.to_owned();
        request.spec = MessageField::some(Any {
            value: spec.to_string().into_bytes(),
            ..Any::default()
        });
        self.client().exec(timeout(), &request).map(drop)
    }

    /// Runs a further process of a container to its end, and deletes it. Returns the exit code.
    pub(crate) fn run_exec(&self, id: &str, command: &[&str]) -> u32 {
        let exec_id = format!("exec-{}", self.events().len());
        self.exec(id, &exec_id, command).unwrap();
        self.start_process(id, &exec_id).unwrap();
        self.wait(id, &exec_id);
        self.delete(id, &exec_id).unwrap().exit_status
    }

    pub(crate) fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = KillRequest::new();
        (request.id, request.signal) = (id.to_owned(), signal);
        self.client().kill(timeout(), &request).map(drop)
    }

    pub(crate) fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<DeleteResponse> {
        let mut request = DeleteRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        self.client().delete(timeout(), &request)
    }

    /// Returns the events that have been received, such as `exit c 137`.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.events.0.lock().unwrap();
        let events = events.iter();
        events
            .map(|(topic, process, code)| format!("{topic} {process} {code}"))
            .collect()
    }

    /// The directory of the pod.
    pub(crate) fn state(&self) -> PathBuf {
        let socket = self.address.strip_prefix("unix://").unwrap();
        Path::new(socket).parent().unwrap().to_owned()
    }

    /// Returns the processes of the pod that run the program: its server, and the shim of its guest.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let program = fs::canonicalize(SHIM).unwrap();
        let dir = self.dir.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let executable = fs::read_link(format!("/proc/{pid}/exe"));
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            executable.is_ok_and(|executable| executable == program)
                && String::from_utf8_lossy(&arguments).contains(&dir)
        })
        .collect()
    }

    /// Waits for an event.
    pub(crate) fn wait_for(&self, event: &str) {
        eventually(event, || self.events().iter().any(|found| found == event));
    }

    /// Returns how often an event has been received of which this is a part.
    pub(crate) fn count(&self, event: &str) -> usize {
        let events = self.events();
        events.iter().filter(|found| found.contains(event)).count()
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        let mut request = ShutdownRequest::new();
        request.now = true;
        if let Ok(client) = Client::connect(&self.address) {
            let _ = TaskClient::new(client).shutdown(timeout(), &request);
        }
        let pods = self.path("pods");
        let is_gone = || fs::read_dir(&pods).map_or(0, Iterator::count) == 0;
        let deadline = Instant::now() + TIMEOUT;
        while !is_gone() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        if !std::thread::panicking() {
            assert!(is_gone(), "the server does not end");
        }
    }
}

/// The OCI spec of a container that runs this command.
pub(crate) fn container_spec(command: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process_spec(command),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        ],
        "linux": {}
    })
}

/// The OCI spec of a process that runs this command.
pub(crate) fn process_spec(command: &[&str]) -> Value {
    // Some scripts mount file systems.
    let capabilities = ["CAP_SYS_ADMIN"];
    json!({
        "args": command,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {
            "bounding": capabilities, "permitted": capabilities, "effective": capabilities
        }
    })
}

pub(crate) fn timeout() -> context::Context {
    context::with_duration(TIMEOUT)
}

/// Returns the code of an error.
pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TIMEOUT, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
