//! Taking over the interfaces of a namespace, and configuring those of a guest: both in namespaces of the
//! test. Needs root.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "common/namespace.rs"]
mod namespace;

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;

use namespace::TestNamespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vmm_network::{Namespace, NetworkError, bring_up_loopback, configure};
use vmm_protocol::network::{Interface, MacAddress};

/// Calls the function in the namespace.
fn enter<T: Send>(namespace: &TestNamespace, action: impl FnOnce() -> T + Send) -> T {
    let file = File::open(namespace.path()).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_guest_has_the_configuration_of_the_interface() {
    let (Some((pod, _network)), Some(guest)) =
        (TestNamespace::create_pod(), TestNamespace::create())
    else {
        return;
    };
    let taps = Namespace::open(&pod.path()).unwrap().attach().unwrap();
    let [tap] = &*taps else {
        panic!("{taps:?}");
    };
    // The kernel of a guest names its interfaces in the order in which it finds them.
    guest.run(
        "ip link add other address 02:00:00:00:00:01 type veth peer name peer; ip link set peer up",
    );
    let interfaces = [tap.interface.clone()];
    enter(&guest, || {
        bring_up_loopback().unwrap();
        configure(&interfaces).unwrap();
    });
    assert!(guest.run("ip link show lo").contains("UP"));
    assert!(guest.run("ip link show eth0").contains("mtu 1400"));
    for (command, without) in [
        ("ip -4 -o addr show eth0 | grep -o 'inet [^ ]*'", ""),
        (
            "ip -6 -o addr show eth0 scope global | grep -o 'inet6 [^ ]*'",
            "",
        ),
        // A route that a program has added has no such mark.
        ("ip -4 route | sort", "proto kernel "),
        ("ip -6 route | grep -v fe80 | sort", "proto kernel "),
        ("ip neigh show nud permanent", ""),
    ] {
        let normal = |text: String| {
            let text = text.replace("proto static ", "");
            let text = if without.is_empty() {
                text
            } else {
                text.replace(without, "")
            };
            text.lines()
                .map(|line| format!("{}\n", line.trim_end()))
                .collect::<String>()
        };
        let expected = normal(pod.run(command));
        assert!(!expected.is_empty(), "{command}");
        assert_eq!(normal(guest.run(command)), expected, "{command}");
    }
}

#[test]
fn interfaces_swap_their_names() {
    let Some(guest) = TestNamespace::create() else {
        return;
    };
    guest.run(
        "ip link add net1 address 02:00:00:00:00:01 type veth peer name net2
         ip link set net2 address 02:00:00:00:00:02",
    );
    let interface = |name: &str, number| Interface {
        name: name.to_owned(),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        mtu: 1500,
        ..Interface::default()
    };
    enter(&guest, || {
        configure(&[interface("net2", 1), interface("net1", 2)]).unwrap()
    });
    assert!(guest.run("ip link show net2").contains("02:00:00:00:00:01"));
    let missing = enter(&guest, || configure(&[interface("net3", 3)]).unwrap_err());
    assert!(
        missing.to_string().contains("02:00:00:00:00:03"),
        "{missing}"
    );
}

#[test]
fn interfaces_with_one_hardware_address_are_configured_in_their_order() {
    let Some(guest) = TestNamespace::create() else {
        return;
    };
    // As those of ipvlan, which have the address of their parent.
    guest.run(
        "ip link add dev0 address 02:00:00:00:00:01 type veth peer name peer0
         ip link add dev1 address 02:00:00:00:00:01 type veth peer name peer1",
    );
    let index = |name: &str| guest.run(&format!("ip -o link show {name} | cut -d: -f1"));
    let before = [index("dev0"), index("dev1")];
    let interface = |name: &str, mtu| Interface {
        name: name.to_owned(),
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu,
        ..Interface::default()
    };
    let interfaces = [interface("net0", 1400), interface("net1", 1300)];
    enter(&guest, || configure(&interfaces).unwrap());
    assert_eq!([index("net0"), index("net1")], before);
    assert!(guest.run("ip link show net1").contains("mtu 1300"));
}

#[test]
fn a_namespace_is_as_before_after_the_taps_are_gone() {
    let Some((pod, _network)) = TestNamespace::create_pod() else {
        return;
    };
    let before = pod.state();
    let namespace = Namespace::open(&pod.path()).unwrap();
    let taps = namespace.attach().unwrap();
    let attached = pod.state();
    assert!(attached.contains("vmmtap0"), "{attached}");

    // Another guest gets an error, and neither it nor its cleanup disturbs the first one.
    let error = namespace.attach().unwrap_err();
    assert!(
        matches!(&error, NetworkError::InUse { interface } if interface == "eth0"),
        "{error}"
    );
    namespace.clean_up().unwrap();
    assert_eq!(pod.state(), attached);

    drop(taps);
    assert_ne!(pod.state(), before);
    namespace.clean_up().unwrap();
    assert_eq!(pod.state(), before);
    // It can be taken over again.
    drop(namespace.attach().unwrap());
}

#[test]
fn connections_to_each_port_of_the_loopback_address_are_accepted() {
    let Some(pod) = TestNamespace::create() else {
        return;
    };
    pod.run("ip link set lo up; ip addr add 192.0.2.1 dev lo");
    let connect = |address: (&str, u16)| enter(&pod, || TcpStream::connect(address));
    let listener = Namespace::open(&pod.path())
        .unwrap()
        .listen_on_loopback()
        .unwrap();
    for address in [("127.0.0.1", 80), ("127.0.0.1", 65535), ("127.1.2.3", 443)] {
        let client = connect(address).unwrap();
        let (connection, peer) = listener.socket().accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(
            connection.local_addr().unwrap(),
            client.peer_addr().unwrap()
        );
    }
    let refused = connect(("192.0.2.1", 80)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop(listener);
    let refused = connect(("127.0.0.1", 80)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_filters_of_other_programs_stay() {
    let Some((pod, _network)) = TestNamespace::create_pod() else {
        return;
    };
    pod.run(
        "ip link add target type veth peer name other
         tc qdisc add dev eth0 ingress
         tc filter add dev eth0 parent ffff: protocol all u32 match u8 0 0 \
             action mirred egress redirect dev target
         ip link del target",
    );
    let filters = "tc filter show dev eth0 ingress";
    let before = pod.run(filters);
    Namespace::open(&pod.path()).unwrap().clean_up().unwrap();
    assert_eq!(pod.run(filters), before);
}

#[test]
fn the_filters_that_other_programs_add_beside_the_redirection_stay() {
    let Some((pod, _network)) = TestNamespace::create_pod() else {
        return;
    };
    let namespace = Namespace::open(&pod.path()).unwrap();
    let taps = namespace.attach().unwrap();
    pod.run("tc filter add dev eth0 parent ffff: protocol all pref 7 u32 match u8 0 0 flowid 1:1");
    drop(taps);
    namespace.clean_up().unwrap();
    let filters = pod.run("tc filter show dev eth0 ingress");
    assert!(filters.contains("pref 7"), "{filters}");
    assert!(!filters.contains("mirred"), "{filters}");
}

#[test]
fn a_qdisc_that_a_killed_program_has_left_is_not_in_use() {
    let Some((pod, _network)) = TestNamespace::create_pod() else {
        return;
    };
    pod.run("tc qdisc add dev eth0 ingress");
    let namespace = Namespace::open(&pod.path()).unwrap();
    drop(namespace.attach().unwrap());
    namespace.clean_up().unwrap();
    assert!(!pod.state().contains("ingress"), "{}", pod.state());

    pod.run("tc qdisc add dev eth0 clsact");
    let error = namespace.attach().unwrap_err();
    assert!(matches!(error, NetworkError::InUse { .. }), "{error}");
}

#[test]
fn what_is_not_the_namespace_of_a_guest_is_refused() {
    let open = |path: &str| Namespace::open(Path::new(path)).unwrap_err();
    let error = open("/proc/self/ns/net");
    assert!(matches!(error, NetworkError::OfHost { .. }), "{error}");
    for path in ["/dev/null", "/proc/self/exe"] {
        let error = open(path);
        assert!(
            matches!(error, NetworkError::NotANamespace { .. }),
            "{error}"
        );
    }
    let error = open("/run/netns/missing");
    assert!(matches!(error, NetworkError::Open { .. }), "{error}");
}
