//! Guests that take over the interfaces of a network namespace.

use std::fs;

use nix::sys::signal::Signal;
use vmm_protocol::FailureKind;
use vmm_protocol::network::Dns;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{Ending, ExecSpec, HostPolicy, Removal, RuntimeError, VmmRuntime, with_causes};
use vmm_shim::{Network, QemuOptions};

use crate::common::kill;
use crate::confinement::{network_namespace, options_with_policy};
use crate::guest::{GuestFiles, open_runtime, spec};
use crate::namespace::TestNamespace;

/// Returns a guest with the agent in the namespace of the pod.
fn guest_in(files: &GuestFiles, pod: &TestNamespace) -> QemuOptions {
    let mut network = Network::new(pod.path());
    network.hostname = Some("web".to_owned());
    network.dns = Some(Dns {
        servers: vec!["10.1.0.1".parse().unwrap()],
        searches: vec!["example".to_owned()],
        ..Dns::default()
    });
    let mut guest = files.guest_with_agent();
    guest.network = Some(network);
    guest
}

async fn open_permitting_runtime(home: &PerTestBoxHome) -> VmmRuntime {
    let policy = HostPolicy::default().allow_network(true);
    VmmRuntime::open(options_with_policy(home, policy))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_guest_has_the_network_of_its_namespace_and_qemu_has_none() {
    let (Some(files), Some((pod, _network))) = (GuestFiles::find(), TestNamespace::create_pod())
    else {
        return;
    };
    let before = pod.state();
    let home = PerTestBoxHome::new();
    let runtime = open_permitting_runtime(&home).await;
    let guest = guest_in(&files, &pod);
    let id = runtime.create(spec(&guest)).await.unwrap().id;
    let bx = runtime.start(&id).await.unwrap();
    let script = "busybox hostname; cat /etc/resolv.conf; busybox tail -n 2 /etc/hosts; \
                  cat /sys/class/net/eth0/address; busybox ping -c 1 10.1.0.1 | busybox grep -o '1 packets r'";
    let command = ExecSpec::new("", ["sh", "-c", script]);
    let execution = runtime.exec(&id, command).await.unwrap();
    let output = execution.output().await.unwrap();
    let expected = "web\nnameserver 10.1.0.1\nsearch example\n10.1.0.2\tweb\nfd00:1::2\tweb\n\
                    02:00:00:00:00:01\n1 packets r\n";
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        expected,
        "{output:?}"
    );

    let of_qemu = network_namespace(bx.payload_pid.unwrap());
    for other in [std::process::id(), bx.pid.unwrap()] {
        assert_ne!(of_qemu, network_namespace(other));
    }
    let devices = fs::read_to_string(format!("/proc/{}/net/dev", bx.payload_pid.unwrap())).unwrap();
    let interfaces: Vec<_> = devices.lines().skip(2).map(str::trim_start).collect();
    assert!(
        interfaces.iter().all(|line| line.starts_with("lo:")),
        "{devices}"
    );

    // The namespace has one guest at a time, whose network the failed start does not disturb.
    let other = runtime.create(spec(&guest)).await.unwrap().id;
    let error = runtime.start(&other).await.unwrap_err();
    let ending = runtime.info(&other).await.unwrap().ending;
    let Some(Ending::Failed { kind, .. }) = ending else {
        panic!("{error:?}: {ending:?}");
    };
    assert_eq!(kind, FailureKind::InUse, "{error:?}");
    let ping = ExecSpec::new("", ["busybox", "ping", "-c", "1", "10.1.0.1"]);
    let execution = runtime.exec(&id, ping).await.unwrap();
    assert_eq!(execution.wait().await.unwrap(), Ending::Exited { code: 0 });

    runtime.stop(&id).await.unwrap();
    assert_eq!(pod.state(), before);
    for id in [id, other] {
        runtime.remove(&id, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn a_box_whose_shim_was_killed_starts_again_in_its_namespace() {
    let (Some(files), Some((pod, _network))) = (GuestFiles::find(), TestNamespace::create_pod())
    else {
        return;
    };
    let before = pod.state();
    let home = PerTestBoxHome::new();
    let runtime = open_permitting_runtime(&home).await;
    let guest = guest_in(&files, &pod);
    let id = runtime.create(spec(&guest)).await.unwrap().id;
    for _ in 0..2 {
        let bx = runtime.start(&id).await.unwrap();
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        runtime.wait(&id).await.unwrap();
    }
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert_eq!(pod.state(), before);
}

#[tokio::test]
async fn a_network_that_the_operator_does_not_permit_is_rejected_at_create() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = QemuOptions::new("/k");
    guest.agent = true;
    guest.network = Some(Network::new("/proc/1/ns/net"));
    let error = runtime.create(spec(&guest)).await.unwrap_err();
    let message = with_causes(&error);
    assert!(
        matches!(error, RuntimeError::InvalidPayload { .. }),
        "{message}"
    );
    assert!(message.contains("--allow-network"), "{message}");
}

#[tokio::test]
async fn a_guest_does_not_take_over_the_network_of_its_host() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_permitting_runtime(&home).await;
    let mut guest = files.guest_with_agent();
    guest.network = Some(Network::new("/proc/self/ns/net"));
    let id = runtime.create(spec(&guest)).await.unwrap().id;
    let message = with_causes(&runtime.start(&id).await.unwrap_err());
    assert!(
        message.contains("network namespace of the host"),
        "{message}"
    );
}
