//! The PID namespaces of containers.

use serde_json::{Value, json};

use crate::common::{Containerd, eventually};
use crate::pod::Pod;

/// Prints the names of all processes that the container sees.
const NAMES: &str = "cat /proc/[0-9]*/comm";

fn pid_namespace(mode: &str) -> Value {
    json!({"network": "NODE", "pid": mode})
}

#[test]
fn a_container_sees_and_signals_only_its_own_processes() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "own");
    let script = "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.1; done";
    let ending = pod.start("ending", script, json!({}));
    let stable = pod.start("stable", "exec sleep infinity", json!({}));
    let names = pod.output(&stable, NAMES);
    let is_own = |name: &str| ["sleep", "sh", "cat"].contains(&name);
    assert!(names.starts_with("sleep\n"), "{names}");
    assert!(names.lines().all(is_own), "{names}");

    // The pid 1 is that of the container, and not the agent of the guest, which these signals would end.
    for signal in ["USR2", "INT", "KILL"] {
        pod.output(&stable, &format!("kill -{signal} 1"));
    }
    eventually("the signal is trapped", || {
        pod.exec(&ending, "ls /ready").2 == 0
    });
    pod.exec(&ending, "kill 1");
    assert_eq!(pod.wait(&ending, "CONTAINER_EXITED")["exitCode"], 7);
    assert_eq!(pod.output(&stable, "echo up"), "up\n");
    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn the_containers_of_a_pod_share_the_process_ids_that_its_configuration_names() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let shared = Pod::run_in(&containerd, "shared", pid_namespace("POD"));
    let ending = shared.start("ending", "exec sleep 1000", json!({}));
    let stable = shared.start("stable", "exec tail -f /dev/null", json!({}));
    let sandbox = shared.output(&ending, "cat /proc/1/cmdline");
    assert_eq!(sandbox, "sleep\0infinity\0");
    let names = shared.output(&ending, NAMES);
    assert!(names.lines().any(|name| name == "tail"), "{names}");
    assert!(!names.contains("init"), "{names}");
    let request = json!({"container_id": ending, "timeout": 60});
    shared.client.call("StopContainer", &request);
    assert_eq!(shared.wait(&ending, "CONTAINER_EXITED")["exitCode"], 143);
    assert_eq!(shared.output(&stable, "echo up"), "up\n");
    shared.remove();

    let guest = Pod::run_in(&containerd, "guest", pid_namespace("NODE"));
    let container = guest.start("container", "sleep infinity", json!({}));
    assert_eq!(guest.output(&container, "cat /proc/1/comm"), "init\n");
    guest.remove();
    containerd.assert_nothing_left();
}
