//! `Exec` and `Attach`, whose streams a kubelet connects to `kubectl exec` and `kubectl attach`.

use serde_json::json;

use crate::common::{Containerd, eventually};
use crate::pod::Pod;
use crate::streams::{STDERR, STDOUT, Streams};

const MIB: usize = 1 << 20;

/// Opens the streams of a script in a container.
fn exec(pod: &Pod, container: &str, script: &str, terminal: bool) -> Streams {
    let request = json!({
        "container_id": container,
        "cmd": ["sh", "-c", script],
        "tty": terminal,
        "stdin": true,
        "stdout": true,
        // A terminal has one output.
        "stderr": !terminal,
    });
    Streams::open(&pod.client, "Exec", &request)
}

/// Opens the streams of the first process of a container.
fn attach(pod: &Pod, container: &str, terminal: bool) -> Streams {
    let request = json!({
        "container_id": container,
        "tty": terminal,
        "stdin": true,
        "stdout": true,
        "stderr": !terminal,
    });
    Streams::open(&pod.client, "Attach", &request)
}

#[test]
fn an_exec_has_stdin_both_outputs_and_an_exit_code() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "exec");
    let container = pod.start("c", "sleep infinity", json!({}));

    let script = "read a; echo out $a; read b; echo err $b >&2; exit 42";
    let mut streams = exec(&pod, &container, script, false);
    streams.write(b"one\n");
    streams.wait_for(STDOUT, "out one\n");
    streams.write(b"two\n");
    assert_eq!(streams.exit_code(), 42);
    assert_eq!(streams.text(STDOUT), "out one\n");
    assert_eq!(streams.text(STDERR), "err two\n");

    // More than all buffers on the way can hold.
    let script = format!("head -c {MIB} | busybox wc -c; head -c {MIB} /dev/zero");
    let mut streams = exec(&pod, &container, &script, false);
    streams.write(&vec![b'x'; MIB]);
    assert_eq!(streams.exit_code(), 0);
    let output = streams.text(STDOUT);
    let (count, zeros) = output.split_once('\n').unwrap();
    assert_eq!((count, zeros.len()), ("1048576", MIB));

    // The stdin ends with the connection.
    let script = "cat >/tmp/file; echo . >>/tmp/file";
    let mut streams = exec(&pod, &container, script, false);
    streams.write(b"data");
    drop(streams);
    eventually("the stdin has ended", || {
        pod.exec(&container, "cat /tmp/file").0 == "data.\n"
    });
    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn an_exec_in_a_terminal_has_the_size_of_its_client() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "terminal");
    let container = pod.start("c", "sleep infinity", json!({}));
    let script = "until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo sized; \
                  until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo larger; \
                  read line; echo [$line]; exit 7";
    let mut streams = exec(&pod, &container, script, true);
    streams.resize(30, 100);
    streams.wait_for(STDOUT, "sized\r\n");
    streams.resize(50, 132);
    streams.wait_for(STDOUT, "larger\r\n");
    streams.write(b"a line\r");
    streams.wait_for(STDOUT, "a line\r\n[a line]\r\n");
    assert_eq!(streams.exit_code(), 7);
    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn clients_attach_to_a_running_container_one_after_the_other() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "attach");
    let script = "while read line; do echo out $line; echo err $line >&2; done; exit 3";
    let container = pod.start("c", script, json!({"stdin": true}));
    for word in ["one", "two"] {
        let mut streams = attach(&pod, &container, false);
        streams.write(format!("{word}\n").as_bytes());
        streams.wait_for(STDOUT, &format!("out {word}\n"));
        streams.wait_for(STDERR, &format!("err {word}\n"));
    }
    pod.wait(&container, "CONTAINER_RUNNING");
    assert_eq!(pod.log("c").len(), 4);

    // The stdin of this one ends with its first client.
    let options = json!({"stdin": true, "stdin_once": true});
    let once = pod.start("once", script, options);
    let mut streams = attach(&pod, &once, false);
    streams.write(b"one\n");
    streams.wait_for(STDOUT, "out one\n");
    drop(streams);
    assert_eq!(pod.wait(&once, "CONTAINER_EXITED")["exitCode"], 3);
    pod.remove();
    containerd.assert_nothing_left();
}

#[test]
fn a_client_attaches_to_the_terminal_of_a_container() {
    let Some(containerd) = Containerd::start_with_cri() else {
        return;
    };
    let pod = Pod::run(&containerd, "terminal");
    let script = "until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo sized; \
                  read line; echo [$line]; exit 4";
    let container = pod.start("c", script, json!({"stdin": true, "tty": true}));
    let mut streams = attach(&pod, &container, true);
    streams.resize(30, 100);
    streams.wait_for(STDOUT, "sized\r\n");
    streams.write(b"a line\r");
    streams.wait_for(STDOUT, "[a line]\r\n");
    // The end of the process ends the connection; its exit code is that of the container.
    assert_eq!(streams.exit_code(), 0);
    assert_eq!(pod.wait(&container, "CONTAINER_EXITED")["exitCode"], 4);
    pod.remove();
    containerd.assert_nothing_left();
}
