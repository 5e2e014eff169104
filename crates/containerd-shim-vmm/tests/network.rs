//! Containers with the network namespace that containerd hands over.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::namespace::TestNamespace;
use common::{Containerd, assert_success, eventually, guest_files, stderr, stdout};

/// A container that serves a file over HTTP.
const SERVER: [&str; 3] = [
    "sh",
    "-c",
    "echo from the guest >/tmp/index.html; exec busybox httpd -f -p 80 -h /tmp",
];

/// Starts a container with the network namespace.
fn start_server(containerd: &Containerd, pod: &TestNamespace) {
    let namespace = format!("network:{}", pod.path().display());
    let options = ["--detach", "--with-ns", &namespace];
    assert_success(&containerd.run("web", &options, &SERVER));
}

fn signal(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_container_connects_and_serves_with_the_interface_of_its_namespace() {
    let (Some(containerd), Some((pod, network))) =
        (Containerd::start(), TestNamespace::create_pod())
    else {
        return;
    };
    let before = pod.state();
    fs::create_dir(containerd.path("www")).unwrap();
    fs::write(containerd.path("www/index.html"), "from the network\n").unwrap();
    let (busybox, www) = (guest_files().join("busybox"), containerd.path("www"));
    let serve = [
        busybox.as_os_str(),
        "httpd".as_ref(),
        "-f".as_ref(),
        "-h".as_ref(),
        www.as_os_str(),
    ];
    let server = network.spawn(serve);
    start_server(&containerd, &pod);

    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; \
                  busybox ip -o addr show eth0 | busybox awk '/global/ { print $4 }'; \
                  busybox ip route | grep default; \
                  busybox ping -c 1 10.1.0.1 | grep -o '1 packets received'; \
                  busybox wget -qO- http://10.1.0.1/";
    let exec = ["task", "exec", "--exec-id", "e", "web", "sh", "-c", script];
    let output = containerd.ctr(exec);
    let expected = "02:00:00:00:00:01\n1400\n10.1.0.2/24\nfd00:1::2/64\n\
                    default via 10.1.0.1 dev eth0 \n1 packets received\nfrom the network\n";
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));

    // httpd may still start.
    let request = format!("{} wget -qO- http://10.1.0.2/ || true", busybox.display());
    eventually("the container serves", || {
        network.run(&request) == "from the guest\n"
    });
    network.run(&format!("{} ping -c 1 10.1.0.2", busybox.display()));

    // Its arguments have the directory of containerd, as those of what a pod could leave.
    drop(server);
    containerd.remove_container("web");
    containerd.assert_nothing_left();
    assert_eq!(pod.state(), before);
}

#[test]
fn a_container_without_a_namespace_has_only_the_loopback_interface() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let script = "ls /sys/class/net; busybox ping -c 1 127.0.0.1 | grep -o '1 packets received'";
    let output = containerd.run("alone", &["--rm"], &["sh", "-c", script]);
    assert_eq!(
        stdout(&output),
        "lo\n1 packets received\n",
        "{}",
        stderr(&output)
    );
    // That of the host is not taken over.
    let output = containerd.run("host", &["--rm", "--net-host"], &["ls", "/sys/class/net"]);
    assert_eq!(stdout(&output), "lo\n", "{}", stderr(&output));
    containerd.assert_nothing_left();
}

#[test]
fn a_killed_server_leaves_the_namespace_as_it_was() {
    let (Some(containerd), Some((pod, _network))) =
        (Containerd::start(), TestNamespace::create_pod())
    else {
        return;
    };
    let before = pod.state();
    start_server(&containerd, &pod);
    assert_ne!(pod.state(), before);
    signal("-KILL", containerd.server_pid());
    containerd.assert_nothing_left();
    eventually("the namespace is restored", || pod.state() == before);
}

#[test]
fn delete_restores_the_namespace_after_all_processes_of_the_pod_were_killed() {
    let (Some(containerd), Some((pod, _network))) =
        (Containerd::start(), TestNamespace::create_pod())
    else {
        return;
    };
    let before = pod.state();
    start_server(&containerd, &pod);
    // The server cannot clean up after the others.
    let server = containerd.server_pid();
    signal("-STOP", server);
    for pid in containerd
        .processes()
        .into_iter()
        .filter(|pid| *pid != server)
    {
        signal("-KILL", pid);
    }
    eventually("the tap device is gone", || !pod.state().contains("vmmtap"));
    assert_ne!(pod.state(), before);
    signal("-KILL", server);
    containerd.assert_nothing_left();
    eventually("the namespace is restored", || pod.state() == before);
}
