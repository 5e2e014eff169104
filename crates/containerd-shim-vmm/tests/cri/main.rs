//! Pods of several containers, through the CRI plugin of the real containerd, as a kubelet runs them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod exec_and_attach;
mod pod;
mod process_ids;
mod streams;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use common::namespace::TestNamespace;
use common::{Containerd, eventually, guest_files};
use pod::{Pod, namespaces};
use streams::{DATA, ERROR, Streams};

/// From the package `containernetworking-plugins` of Debian.
const CNI_PLUGIN: &str = "/usr/lib/cni/ptp";

#[test]
fn the_containers_of_a_pod_share_a_volume_and_a_guest() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let volume = containerd.path("volume");
    fs::create_dir(&volume).unwrap();
    let mounts = json!([{"host_path": volume, "container_path": "/data"}]);
    let pod = Pod::run(&containerd, "web");
    let script = "echo hello >/data/file; touch /own; sleep infinity";
    let writer = pod.start("writer", script, json!({"mounts": mounts}));
    let script =
        "while ! cat /data/file 2>/dev/null; do sleep 0.1; done; echo done >&2; sleep infinity";
    let reader = pod.start("reader", script, json!({"mounts": mounts}));

    eventually("the log is complete", || pod.log("reader").len() == 2);
    // containerd reads the two streams in no particular order.
    let mut log = pod.log("reader");
    log.sort();
    assert_eq!(log, ["stderr F done", "stdout F hello"]);
    // The first is that of the kernel, the others are those of the pod.
    let script = "cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/ipc; hostname; cat /etc/resolv.conf";
    let shared = pod.output(&reader, script);
    assert_eq!(pod.output(&writer, script), shared);
    assert!(
        shared.ends_with("web\nsearch example.org\nnameserver 192.0.2.53\n"),
        "{shared}"
    );
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(!shared.contains(&host));
    // Each has a root file system of its own.
    assert_eq!(pod.output(&writer, "ls /own"), "/own\n");
    let (_, error, code) = pod.exec(&reader, "ls /own");
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("No such file"), "{error}");

    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn a_container_of_a_pod_restarts_beside_the_others() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "restart");
    let script = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let stable = pod.start("stable", script, json!({}));
    let failed = pod.start("app", "exit 42", json!({}));
    assert_eq!(pod.wait(&failed, "CONTAINER_EXITED")["exitCode"], 42);
    pod.client
        .call("RemoveContainer", &json!({"container_id": failed}));
    let options = json!({"metadata": {"name": "app", "attempt": 1}});
    // Reads a file, which the kernel of the guest then caches.
    let restarted = pod.start(
        "app",
        "cat /bin/busybox >/dev/null; sleep infinity",
        options,
    );
    assert_eq!(pod.output(&restarted, "echo up"), "up\n");

    let stats = pod
        .client
        .call("ContainerStats", &json!({"container_id": restarted}));
    let memory = |name: &str| -> u64 {
        let value = stats["stats"]["memory"][name]["value"].as_str();
        value.map_or(0, |bytes| bytes.parse().unwrap())
    };
    let working_set = memory("workingSetBytes");
    assert!((1..memory("usageBytes")).contains(&working_set), "{stats}");
    assert!(
        memory("rssBytes") > 0 && memory("pageFaults") > 0,
        "{stats}"
    );
    // The container has no limit, of which a part could be available.
    assert_eq!(memory("availableBytes"), 0, "{stats}");
    let request = json!({"pod_sandbox_id": pod.id});
    let status = &pod.client.call("PodSandboxStatus", &request)["status"];
    assert_eq!(status["runtimeHandler"], "vmm", "{status}");

    let request = json!({"container_id": stable, "timeout": 60});
    pod.client.call("StopContainer", &request);
    assert_eq!(pod.wait(&stable, "CONTAINER_EXITED")["exitCode"], 7);
    assert_eq!(pod.output(&restarted, "echo up"), "up\n");
    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn a_container_has_the_user_and_the_limits_of_its_configuration() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "limits");
    let options = json!({
        "working_dir": "/tmp",
        "envs": [{"key": "COLOR", "value": "blue"}],
        "linux": {
            "resources": {"memory_limit_in_bytes": 64 << 20},
            "security_context": {
                "namespace_options": namespaces(),
                "run_as_user": {"value": 33},
                "run_as_group": {"value": 34},
                "supplemental_groups": [44],
                "readonly_rootfs": true,
                "no_new_privs": true,
                "capabilities": {"drop_capabilities": ["ALL"]},
            },
        },
    });
    let container = pod.start("limited", "sleep infinity", options);
    let script = "id; pwd; echo $COLOR; touch /tmp/x || echo read-only; \
                  cat /sys/fs/cgroup/*/memory.max | grep -v max; \
                  grep -E 'CapBnd|NoNewPrivs' /proc/self/status";
    let expected = "uid=33 gid=34 groups=34,44\n/tmp\nblue\nread-only\n67108864\n\
                    CapBnd:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(pod.output(&container, script), expected);

    let options = json!({"linux": {
        "resources": {"memory_limit_in_bytes": 16 << 20},
        "security_context": {"namespace_options": namespaces()},
    }});
    let greedy = pod.start("greedy", "tail /dev/zero; exit 1", options);
    let status = pod.wait(&greedy, "CONTAINER_EXITED");
    assert_eq!(status["reason"], "OOMKilled", "{status}");
    pod.remove();
    containerd.assert_nothing_left();
}

/// The network of the CNI plugin `ptp`: a pair of veth devices for each pod.
fn network(dir: &Path) -> Value {
    let ranges = json!([[{"subnet": "10.88.0.0/24"}]]);
    json!({
        "cniVersion": "0.4.0",
        "name": "test",
        "plugins": [{
            "type": "ptp",
            "mtu": 1400,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("ipam"),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

#[test]
fn a_pod_with_the_network_of_a_cni_plugin_serves_and_connects() {
    if !Path::new(CNI_PLUGIN).exists() {
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "this test needs {CNI_PLUGIN}");
        eprintln!("SKIPPED: this test needs {CNI_PLUGIN}");
        return;
    }
    let Some(host) = TestNamespace::create() else {
        return;
    };
    let Some(containerd) = Containerd::start_with_cri_in(&host) else {
        return;
    };
    let conf = containerd.path("cni");
    fs::create_dir_all(&conf).unwrap();
    let network = network(&containerd.path(""));
    fs::write(conf.join("10-test.conflist"), network.to_string()).unwrap();
    let client = client::CriClient::connect(&containerd.socket());
    eventually("containerd has read the network", || {
        let status = client.call("Status", &json!({}));
        let conditions = status["status"]["conditions"].as_array().unwrap().iter();
        let mut network = conditions.filter(|condition| condition["type"] == "NetworkReady");
        network
            .next()
            .is_some_and(|condition| condition["status"] == true)
    });
    let pod = Pod::run_in_network(&containerd, "net");
    let status = client.call("PodSandboxStatus", &json!({"pod_sandbox_id": pod.id}));
    let ip = status["status"]["network"]["ip"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(ip.starts_with("10.88.0."), "{status}");

    let serve = "echo from the pod >/tmp/index.html; busybox httpd -p 127.0.0.1:8080 -h /tmp; \
                 exec busybox httpd -f -p 80 -h /tmp";
    let web = pod.start("web", serve, json!({}));
    let busybox = guest_files().join("busybox");
    let get = format!("{} wget -qO- http://{ip}/ || true", busybox.display());
    eventually("the port of the pod responds", || {
        host.run(&get) == "from the pod\n"
    });
    let inside = "busybox ip -o -4 addr show eth0 | busybox awk '{ print $4 }'; \
                  cat /sys/class/net/eth0/mtu; \
                  busybox ping -c 1 10.88.0.1 | grep -o '1 packets received'";
    let expected = format!("{ip}/24\n1400\n1 packets received\n");
    assert_eq!(pod.output(&web, inside), expected);

    // To the streaming server of containerd.
    host.run("ip link set lo up");
    let open = |port| Streams::of_port(&client, &host, &pod.id, port);
    for port in [80, 8080] {
        let mut forwarded = open(port);
        forwarded.write(b"GET / HTTP/1.0\r\n\r\n");
        forwarded.wait_for(DATA, "from the pod\n");
    }
    open(81).wait_for(ERROR, "error forwarding port 81");
    pod.remove();
    containerd.assert_nothing_left();
    assert!(!host.run("ip -o link").contains("veth"));
}
