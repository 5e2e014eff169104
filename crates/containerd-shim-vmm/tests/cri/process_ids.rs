//! The PID namespaces of containers.

use serde_json::{Value, json};

use crate::common::{Containerd, eventually};
use crate::pod::Pod;

/// Prints the names of all processes that the container sees.
const NAMES: &str = "cat /proc/[0-9]*/comm";

fn pid_namespace(mode: &str) -> Value {
    json!({"network": "NODE", "pid": mode})
}

/// Waits until the pid 1 that a container sees executes `sleep infinity`. Its start can return before.
fn wait_executed(pod: &Pod, container: &str) {
    eventually("the pid 1 executes its command", || {
        pod.output(container, "cat /proc/1/cmdline") == "sleep\0infinity\0"
    });
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
    wait_executed(&pod, &stable);
    let names = pod.output(&stable, NAMES);
    let is_own = |name: &str| ["sleep", "sh", "cat"].contains(&name);
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
    // That of the sandbox.
    wait_executed(&shared, &ending);
    eventually("the other container runs its command", || {
        let names = shared.output(&ending, NAMES);
        assert!(!names.contains("init"), "{names}");
        names.lines().any(|name| name == "tail")
    });
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
