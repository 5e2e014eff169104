//! What the OCI spec of a container sets in its guest.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::fixture::{TestPod, container_spec, process_spec, timeout};

/// Runs a container, whose spec the function changes, to its end. Returns its output.
#[track_caller]
fn output_of(pod: &TestPod, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut spec = container_spec(&["sh", "-c", script]);
    change(&mut spec);
    let (output, code) = pod.run_spec(id, &spec);
    assert_eq!(code, 0, "{output}");
    output
}

#[test]
fn a_process_has_the_capabilities_limits_and_umask_of_its_spec() {
    let Some(pod) = TestPod::start() else { return };
    let script = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status; umask; ulimit -Hn; ulimit -Sn; \
                  cat /proc/self/oom_score_adj";
    let output = output_of(&pod, "c", script, |spec| {
        let process = &mut spec["process"];
        process["user"] = json!({"uid": 33, "gid": 34, "umask": 0o27});
        process["noNewPrivileges"] = json!(true);
        // Above that of the kernel, and with a program that may not raise it.
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 5000, "soft": 500}]);
        process["oomScoreAdj"] = json!(-7);
        process["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_CHOWN"],
            "inheritable": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        });
    });
    // The ambient capabilities become the permitted and effective ones of the program, capabilities(7).
    let expected = "CapInh:\t0000000000000401\n\
                    CapPrm:\t0000000000000400\n\
                    CapEff:\t0000000000000400\n\
                    CapBnd:\t0000000000000421\n\
                    CapAmb:\t0000000000000400\n\
                    NoNewPrivs:\t1\n0027\n5000\n500\n-7\n";
    assert_eq!(output, expected);

    let mut spec = container_spec(&["sh", "-c", "true"]);
    spec["process"]["capabilities"] = json!({"bounding": [], "ambient": ["CAP_CHOWN"]});
    assert_eq!(pod.run_spec("refused", &spec).1, 125);
}

#[test]
fn an_added_process_without_capabilities_has_those_of_its_container() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sleep", "1000"], "");
    // CAP_SYS_ADMIN.
    let script = "grep -q '^CapEff:.0*200000$' /proc/self/status && exit 7";
    let mut process = process_spec(&["sh", "-c", script]);
    process.as_object_mut().unwrap().remove("capabilities");
    pod.exec_with_spec("c", "e", &process, "").unwrap();
    pod.start_process("c", "e").unwrap();
    assert_eq!(pod.wait("c", "e"), 7);
}

#[test]
fn a_user_can_open_its_streams_and_starts_in_a_directory_that_it_cannot_enter() {
    let Some(pod) = TestPod::start() else { return };
    let script =
        "echo out >/dev/stdout && echo err >/dev/stderr && pwd; cd /private || echo refused";
    let output = output_of(&pod, "c", script, |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/private", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]
        }));
        spec["process"]["user"] = json!({"uid": 33, "gid": 34});
        spec["process"]["cwd"] = json!("/private");
    });
    assert_eq!(output, "out\n/private\nrefused\n");
}

#[test]
fn a_working_directory_outside_of_the_root_is_refused() {
    let Some(pod) = TestPod::start() else { return };
    // Without a PID namespace, pid 1 is the agent.
    let create = |id: &str, cwd: &str, command: &[&str]| {
        let mut spec = container_spec(command);
        spec["process"]["cwd"] = json!(cwd);
        let output = pod.path(&format!("output-{id}"));
        let mut request = pod.create_request(id, &spec, "");
        request.stderr = format!("file://{}", output.display());
        let root = pod.path(&format!("bundle-{id}/rootfs"));
        symlink("/proc/1/root/run/vmm/pod", root.join("pod")).unwrap();
        symlink("/proc/1/root/run", root.join("agent")).unwrap();
        pod.client().create(timeout(), &request).unwrap();
        pod.start_process(id, "").unwrap();
        output
    };
    create("c", "/", &["sleep", "1000"]);
    for (id, dir, message) in [
        (
            "d",
            "/pod",
            "the working directory /pod is outside of the root file system",
        ),
        // It would be created there.
        (
            "n",
            "/agent/new",
            "cannot create the working directory /agent/new",
        ),
    ] {
        let output = create(id, dir, &["sh", "-c", "true"]);
        assert_eq!(pod.wait(id, ""), 125);
        pod.delete(id, "").unwrap();
        let output = fs::read_to_string(output).unwrap();
        assert!(
            output.starts_with(&format!("vmm-agent: {message}")),
            "{output}"
        );
    }

    let mut process = process_spec(&["sh", "-c", "true"]);
    process["cwd"] = json!("/pod");
    pod.exec_with_spec("c", "e", &process, "").unwrap();
    pod.start_process("c", "e").unwrap();
    assert_eq!(pod.wait("c", "e"), 125);
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    let Some(pod) = TestPod::start() else { return };
    let script = "cat /proc/version; busybox ls /proc/fs; cat /proc/sys/kernel/shm_rmid_forced; \
                  (echo 1 >/proc/sys/kernel/shm_rmid_forced) 2>/dev/null || echo read-only; \
                  grep -o 'proc /proc/sys [^ ]* [^ ]*' /proc/mounts";
    let output = output_of(&pod, "c", script, |spec| {
        spec["mounts"][0]["options"] = json!(["nosuid", "noexec", "nodev"]);
        spec["linux"] = json!({
            "maskedPaths": ["/proc/version", "/proc/fs", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/no/such/path"],
        });
    });
    let expected = "0\nread-only\nproc /proc/sys proc ro,nosuid,nodev,noexec,relatime\n";
    assert_eq!(output, expected);
}

#[test]
fn a_pod_has_the_sysctls_and_a_container_the_devices_of_its_spec() {
    let Some(pod) = TestPod::start() else { return };
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_default_ttl; \
                  busybox stat -c '%n %F %t:%T %a %u:%g' /dev/fuse /dev/dir/fifo; \
                  echo x >/dev/null && echo usable";
    let output = output_of(&pod, "c", script, |spec| {
        spec["linux"] = json!({
            "sysctl": {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_default_ttl": "33"},
            "devices": [
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
                {
                    "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                    "fileMode": 0o662, "uid": 33, "gid": 34
                },
                {"path": "/dev/dir/fifo", "type": "p", "major": 0, "minor": 0},
            ],
        });
    });
    let expected = "1\n33\n/dev/fuse character special file a:e5 662 33:34\n\
                    /dev/dir/fifo fifo 0:0 666 0:0\nusable\n";
    assert_eq!(output, expected);
    // The guest is that of the pod.
    let script = "cat /proc/sys/net/ipv4/ip_default_ttl";
    assert_eq!(output_of(&pod, "other", script, |_| {}), "33\n");
}

#[test]
fn a_control_group_has_the_limits_of_its_spec() {
    let Some(pod) = TestPod::start() else { return };
    let limits = |resources: Value| {
        move |spec: &mut Value| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/group", "type": "cgroup", "source": "cgroup"}));
            spec["linux"]["resources"] = resources;
        }
    };
    let script = "cd /group/c && cat memory.max memory.low memory.swap.max memory.high cpu.weight \
                  cpuset.cpus";
    let resources = json!({
        "memory": {"limit": 64 << 20, "reservation": 16 << 20, "swap": 96 << 20},
        "cpu": {"shares": 2048, "cpus": "0"},
        "unified": {"memory.high": "50331648"},
    });
    let output = output_of(&pod, "c", script, limits(resources));
    let expected = "67108864\n16777216\n33554432\n50331648\n174\n0\n";
    assert_eq!(output, expected);

    // A set of CPUs that the host has, and the guest lacks.
    let script = "cat /group/d/cpuset.cpus.effective";
    let resources = json!({"cpu": {"cpus": "1000"}});
    assert_eq!(output_of(&pod, "d", script, limits(resources)), "0\n");
}

#[test]
fn a_container_with_a_control_group_namespace_sees_its_own_group_only() {
    let Some(pod) = TestPod::start() else { return };
    let mut spec = container_spec(&["sleep", "1000"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/group", "type": "cgroup", "source": "cgroup"}));
    spec["linux"] = json!({
        "namespaces": [{"type": "pid"}, {"type": "cgroup"}],
        "resources": {"memory": {"limit": 64 << 20}},
    });
    pod.run_with_spec("c", &spec);
    let script = "grep -q '^0::/$' /proc/self/cgroup && grep -q '^67108864$' /group/memory.max";
    assert_eq!(pod.run_exec("c", &["sh", "-c", script]), 0);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    pod.run_with_spec("d", &spec);
    let script = "grep -q '^0::/d$' /proc/self/cgroup && [ -d /group/c ]";
    assert_eq!(pod.run_exec("d", &["sh", "-c", script]), 0);
}
