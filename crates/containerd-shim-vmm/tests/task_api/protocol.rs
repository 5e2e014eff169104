//! What the program prints, and the names under which it serves.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, ConnectResponse, UpdateTaskRequest,
};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{Code, Request};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use containerd_shim_protos::{Client, ttrpc};

use crate::fixture::{POD, SHIM, TestPod, code, container_spec, eventually, timeout};

/// Calls `Connect` of a service.
fn connect(pod: &TestPod, service: &str) -> ttrpc::Result<ConnectResponse> {
    let mut connect = ConnectRequest::new();
    connect.id = POD.to_owned();
    let mut request = Request::new();
    request.service = service.to_owned();
    request.method = "Connect".to_owned();
    request.payload = connect.write_to_bytes().unwrap();
    let response = Client::connect(pod.address()).unwrap().request(request)?;
    Ok(ConnectResponse::parse_from_bytes(&response.payload).unwrap())
}

#[test]
fn one_server_has_both_versions_of_the_task_api_for_containerd_2() {
    let pod = TestPod::start_with(|_, events| {
        let mut params = BootstrapParams::new();
        params.instance_id = POD.to_owned();
        params.containerd_ttrpc_address = events.to_owned();
        params.write_to_bytes().unwrap()
    });
    let Some(pod) = pod else { return };
    let v2 = connect(&pod, "containerd.task.v2.Task").unwrap();
    let v3 = connect(&pod, "containerd.task.v3.Task").unwrap();
    assert_ne!(v2.shim_pid, 0);
    assert_eq!(v2.shim_pid, v3.shim_pid);
    let unknown = connect(&pod, "containerd.task.v4.Task");
    assert_eq!(code(unknown), Code::INVALID_ARGUMENT);

    let result = BootstrapResult::parse_from_bytes(&pod.printed).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(result.address, pod.address());
}

#[test]
fn a_program_that_only_connects_is_not_taken_for_containerd() {
    let Some(pod) = TestPod::start() else { return };
    // The connection of containerd.
    let client = pod.client();
    let create = |id: &str| {
        let request = pod.create_request(id, &container_spec(&["sleep", "1000"]), "");
        client.create(timeout(), &request).unwrap();
    };
    create("c");
    let containerd = || fs::read_to_string(pod.path("bundle-c/vmm-containerd.json")).unwrap();
    let before = containerd();
    // The connection for events exists.
    eventually("the event of the container", || pod.count("create") == 1);
    let server = client
        .connect(timeout(), &ConnectRequest::new())
        .unwrap()
        .shim_pid;
    let sockets = || {
        let descriptors = fs::read_dir(format!("/proc/{server}/fd"))
            .unwrap()
            .flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        let is_socket = |target: &PathBuf| target.to_string_lossy().starts_with("socket:");
        targets.filter(is_socket).count()
    };
    let sockets_before = sockets();
    // It connects, writes what is not a request once the server has accepted the connection, and ends.
    let socket = pod.address().strip_prefix("unix://").unwrap();
    let mut program = Command::new("logger")
        .args(["--socket", socket])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the server accepts", || sockets() > sockets_before);
    program.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert!(program.wait().unwrap().success());
    // If it were containerd, the container would not be wanted any more.
    create("d");
    assert_eq!(containerd(), before);
}

#[test]
fn requests_that_are_not_implemented_fail_with_a_reason() {
    let Some(pod) = TestPod::start() else { return };
    let checkpoint = pod
        .client()
        .checkpoint(timeout(), &CheckpointTaskRequest::new());
    let update = pod.client().update(timeout(), &UpdateTaskRequest::new());
    for (result, reason) in [
        (checkpoint, "cannot be saved"),
        (update, "are set when it is created"),
    ] {
        let message = result.as_ref().unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        assert_eq!(code(result), Code::UNIMPLEMENTED);
    }
}

#[test]
fn the_program_describes_itself() {
    let output = Command::new(SHIM).arg("-info").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.vmm.v1");
    assert!(!info.version.version.is_empty());
}
