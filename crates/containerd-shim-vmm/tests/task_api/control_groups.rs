//! Control groups that a container creates within its own.

use containerd_shim_protos::api::KillRequest;

use crate::fixture::{TestPod, eventually, timeout};

const MOUNT: &str = "busybox mkdir /cg && busybox mount -t cgroup2 none /cg || exit 1;";

/// Exits with 6 after a signal has ended the process in the inner group.
const NESTED: &str = "busybox mkdir -p /cg/c/a/b || exit 1; \
     sleep 1000 & echo $! >/cg/c/a/b/cgroup.procs; trap : 40; echo ready >/ready; \
     while kill -0 $! 2>/dev/null; do wait; done; exit 6";

/// A real-time signal.
const SIGNAL: u32 = 40;

#[test]
fn signals_and_the_end_of_a_container_reach_the_control_groups_that_it_has_created() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sh", "-c", &format!("{MOUNT} {NESTED}")], "");
    eventually("the signal is trapped", || {
        pod.run_exec("c", &["cat", "/ready"]) == 0
    });
    pod.exec("c", "e", &["sleep", "1000"]).unwrap();
    pod.start_process("c", "e").unwrap();
    let mut request = KillRequest::new();
    (request.id, request.signal, request.all) = ("c".to_owned(), SIGNAL, true);
    pod.client().kill(timeout(), &request).unwrap();
    pod.wait_for("exit c 6");

    let script = format!("{MOUNT} [ -d /cg/d ] && [ ! -e /cg/c ]");
    pod.run("d", &["sh", "-c", &script], "");
    pod.wait_for("exit d 0");
}
