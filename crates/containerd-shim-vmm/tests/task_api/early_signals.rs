//! Signals for a container with a PID namespace, before its program is executed.

use std::fs;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::fixture::{TestPod, container_spec, eventually, process_spec, timeout};

const SIGTERM: u32 = 15;
const SIGCHLD: u32 = 17;

/// The OCI spec of a container with a PID namespace.
fn spec() -> Value {
    let mut spec = container_spec(&["sleep", "1000"]);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    spec
}

#[test]
fn a_signal_ends_a_container_that_waits_for_its_sandbox() {
    let Some(pod) = TestPod::start() else { return };
    let mut spec = spec();
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "sandbox"
    });
    pod.run_with_spec("c", &spec);
    for signal in [SIGCHLD, SIGTERM] {
        pod.kill("c", signal).unwrap();
    }
    // It cannot be prepared either.
    spec["linux"]["sysctl"] = json!({"no.such": "1"});
    pod.run_with_spec("d", &spec);
    pod.kill("d", SIGTERM).unwrap();
    pod.run_with_spec("failed", &spec);
    pod.run("sandbox", &["sleep", "1000"], "");
    pod.wait_for("exit c 143");
    pod.wait_for("exit d 143");
    pod.wait_for("exit failed 125");
}

#[test]
fn a_signal_ends_a_container_that_is_ready_to_execute_its_program() {
    let Some(pod) = TestPod::start() else { return };
    // The home directory is looked up last.
    let request = pod.create_request("c", &spec(), "");
    let root = pod.path("bundle-c/rootfs");
    fs::create_dir(root.join("etc")).unwrap();
    let passwd = root.join("etc/passwd");
    mknodat(CWD, &passwd, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    pod.client().create(timeout(), &request).unwrap();
    pod.start_process("c", "").unwrap();

    // Opened when there is a reader.
    let script = "exec 3>/etc/passwd; >/opened; while ! [ -e /go ]; do sleep 0.1; done";
    let mut writer = process_spec(&["sh", "-c", script]);
    writer["env"] = json!(["PATH=/bin", "HOME=/"]);
    pod.exec_with_spec("c", "writer", &writer, "").unwrap();
    pod.start_process("c", "writer").unwrap();
    eventually("the home directory is looked up", || {
        root.join("opened").exists()
    });
    pod.kill("c", SIGTERM).unwrap();
    fs::write(root.join("go"), "").unwrap();
    pod.wait_for("exit c 143");
}
