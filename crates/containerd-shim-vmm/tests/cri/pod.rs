//! A pod, as a kubelet runs it.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use serde_json::{Value, json};

use crate::client::CriClient;
use crate::common::{Containerd, IMAGE, eventually};

/// A pod with the runtime handler `vmm`.
pub(crate) struct Pod {
    pub(crate) client: CriClient,
    pub(crate) id: String,
    config: Value,
    logs: PathBuf,
}

impl Pod {
    /// Starts a pod without a network of its own.
    pub(crate) fn run(containerd: &Containerd, name: &str) -> Self {
        Self::run_in(containerd, name, namespaces())
    }

    /// Starts a pod with the network that plugins of CNI configure.
    pub(crate) fn run_in_network(containerd: &Containerd, name: &str) -> Self {
        Self::run_in(
            containerd,
            name,
            json!({"network": "POD", "pid": "CONTAINER"}),
        )
    }

    /// Starts a pod with these `NamespaceOption`s, which its containers have, too.
    pub(crate) fn run_in(containerd: &Containerd, name: &str, namespaces: Value) -> Self {
        let client = CriClient::connect(&containerd.socket());
        let logs = containerd.path("logs");
        let config = json!({
            "metadata": {"name": name, "uid": name, "namespace": "default"},
            "hostname": name,
            "log_directory": logs,
            "dns_config": {"servers": ["192.0.2.53"], "searches": ["example.org"]},
            "linux": {"security_context": {"namespace_options": namespaces}},
        });
        let request = json!({"config": config, "runtime_handler": "vmm"});
        let response = client.call("RunPodSandbox", &request);
        Self {
            client,
            id: text(&response["podSandboxId"]),
            config,
            logs,
        }
    }

    /// Starts a container that runs a script. The options are fields of `ContainerConfig`. Returns its ID.
    pub(crate) fn start(&self, name: &str, script: &str, options: Value) -> String {
        let mut config = json!({
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            "linux": self.config["linux"],
        });
        let (Value::Object(config_fields), Value::Object(options)) = (&mut config, options) else {
            panic!("the options are an object");
        };
        config_fields.extend(options);
        let request = json!({
            "pod_sandbox_id": self.id,
            "config": config,
            "sandbox_config": self.config,
        });
        let response = self.client.call("CreateContainer", &request);
        let id = text(&response["containerId"]);
        self.client
            .call("StartContainer", &json!({"container_id": id}));
        id
    }

    /// Runs a script in a container, and returns its output, that to stderr, and its exit code.
    pub(crate) fn exec(&self, container: &str, script: &str) -> (String, String, i64) {
        let request = json!({"container_id": container, "cmd": ["sh", "-c", script]});
        let response = self.client.call("ExecSync", &request);
        // JSON has bytes in base64, and no field that has its default value.
        let decode = |field: &str| {
            let text = response[field].as_str().unwrap_or_default();
            String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
        };
        let code = response["exitCode"].as_i64().unwrap_or_default();
        (decode("stdout"), decode("stderr"), code)
    }

    /// Runs a script that succeeds in a container, and returns its output.
    #[track_caller]
    pub(crate) fn output(&self, container: &str, script: &str) -> String {
        let (stdout, stderr, code) = self.exec(container, script);
        assert_eq!(code, 0, "{stderr}");
        stdout
    }

    /// Waits until a container has this state.
    pub(crate) fn wait(&self, container: &str, state: &str) -> Value {
        let request = json!({"container_id": container});
        let mut status = Value::Null;
        eventually(&format!("the container is {state}"), || {
            let response = self.client.call("ContainerStatus", &request);
            status = response["status"].clone();
            status["state"] == state
        });
        status
    }

    /// Returns the lines of the log of a container, as the CRI plugin has written them, without their times.
    pub(crate) fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.logs.join(format!("{name}.log")));
        let text = text.unwrap_or_default();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap().1);
        lines.map(str::to_owned).collect()
    }

    /// Stops and removes the pod with its containers.
    pub(crate) fn remove(self) {
        let request = json!({"pod_sandbox_id": self.id});
        self.client.call("StopPodSandbox", &request);
        self.client.call("RemovePodSandbox", &request);
    }
}

/// The namespaces of a pod that has no network of its own.
pub(crate) fn namespaces() -> Value {
    json!({"network": "NODE", "pid": "CONTAINER"})
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
