//! Output that no client reads.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, KillRequest};
use containerd_shim_protos::ttrpc::{Code, context};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::fixture::{TestPod, code, eventually, process_spec, timeout};

/// Makes a FIFO. Returns a reader of it, which never reads.
fn make_fifo(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::from_bits_retain(0o600), 0).unwrap();
    let mut options = File::options();
    options.read(true).write(true).open(path).unwrap()
}

fn wait_full(fifo: &File) {
    let is_full = || rustix::io::ioctl_fionread(fifo).unwrap() == 64 << 10;
    eventually("the FIFO is full", is_full);
}

#[test]
fn an_exit_does_not_wait_for_a_reader_of_the_output() {
    let Some(pod) = TestPod::start() else { return };
    let fifo = pod.path("stdout");
    let reader = make_fifo(&fifo);
    let script = "echo $$ >/pid; exec yes";
    pod.run("c", &["sh", "-c", script], fifo.to_str().unwrap());
    pod.exec("c", "e", &["sleep", "1000"]).unwrap();
    pod.start_process("c", "e").unwrap();
    wait_full(&reader);
    // All buffers up to the pipe of the command: it has called write(2), whose number is 1, again and again.
    let mut blocked = 0;
    eventually("the command waits", || {
        let waits = "grep -q '^1 ' /proc/$(cat /pid)/syscall";
        blocked = if pod.run_exec("c", &["sh", "-c", waits]) == 0 {
            blocked + 1
        } else {
            0
        };
        blocked == 5
    });
    pod.kill("c", 15).unwrap();
    pod.wait_for("exit c 143");
    let events = pod.events();
    let position = |event: &str| events.iter().position(|found| found == event);
    assert!(position("exit e 137").is_some(), "{events:?}");
    assert!(
        position("exit e 137") < position("exit c 143"),
        "{events:?}"
    );
    // The rest of the output is discarded then.
    pod.delete("c", "e").unwrap();
    pod.delete("c", "").unwrap();
    pod.wait_for("delete c 143");
    assert_eq!(pod.count("delete "), 1, "{:?}", pod.events());
}

#[test]
fn a_deletion_whose_client_gives_up_ends_the_copy_of_the_output() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sleep", "1000"], "");
    let fifo = pod.path("stdout");
    let reader = make_fifo(&fifo);
    let spec = process_spec(&["yes"]);
    pod.exec_with_spec("c", "e", &spec, fifo.to_str().unwrap())
        .unwrap();
    pod.start_process("c", "e").unwrap();
    let count = || {
        let pids = pod.processes().into_iter();
        let entries = pids.flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter());
        let files = entries.flatten().flatten().map(|entry| entry.path());
        files
            .filter(|file| fs::read_link(file).is_ok_and(|target| target == fifo))
            .count()
    };
    wait_full(&reader);
    assert!(count() > 0);
    let mut request = KillRequest::new();
    (request.id, request.exec_id, request.signal) = ("c".to_owned(), "e".to_owned(), 9);
    pod.client().kill(timeout(), &request).unwrap();
    pod.wait_for("exit e 137");
    let mut request = DeleteRequest::new();
    (request.id, request.exec_id) = ("c".to_owned(), "e".to_owned());
    // The output waits longer for a reader.
    let short = context::with_duration(Duration::from_secs(2));
    pod.client().delete(short, &request).unwrap_err();
    // Waits for the first request.
    assert_eq!(code(pod.delete("c", "e")), Code::NOT_FOUND);
    assert_eq!(count(), 0);
}
