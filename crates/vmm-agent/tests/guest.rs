//! The agent as pid 1 of a guest.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use common::guest::Guest;
use vmm_protocol::Ending;
use vmm_protocol::frames::{ExecSpec, HostMessage, PayloadMessage, TerminalSize, VERSION};

#[test]
fn a_guest_boots_and_runs_commands() {
    let Some((_guest, mut host)) = Guest::boot() else {
        return;
    };
    host.send_garbage(b"the rest of a frame VM\0");
    host.send(0, HostMessage::Hello { version: VERSION });
    let PayloadMessage::Ready { version, boot } = host.receive().message else {
        panic!("the guest is not ready");
    };
    assert_eq!(version, VERSION);
    let phases: Vec<_> = boot.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["kernel", "mounts", "modules", "root", "port"]);

    let outcome = host.run(1, &["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(
        (outcome.text(), &outcome.stderr[..]),
        ("out\n", &b"err\n"[..])
    );
    assert_eq!(*outcome.ending(), Ending::Exited { code: 42 });

    // The root file system is an overlay, which can be written.
    let outcome = host.run(
        1,
        &["sh", "-c", "echo $HOME >/file && cat /file /proc/mounts"],
    );
    let root = outcome.text().strip_prefix("/root\n").unwrap();
    assert!(root.contains("overlay / overlay"), "{root}");

    let mut spec = ExecSpec::new("terminal", ["sh", "-c", "stty size; cat </dev/tty"]);
    spec.terminal = Some(TerminalSize { rows: 7, cols: 70 });
    spec.stdin = true;
    host.send(2, HostMessage::Exec(spec));
    host.send(2, HostMessage::Stdin(b"typed\n".to_vec()));
    host.send(2, HostMessage::CloseStdin);
    let outcome = host.finish(2);
    assert!(outcome.text().contains("7 70\r\n"), "{}", outcome.text());
    assert!(outcome.text().contains("typed\r\n"), "{}", outcome.text());
    assert_eq!(*outcome.ending(), Ending::Exited { code: 0 });

    let mut spec = ExecSpec::new("user", ["id"]);
    spec.user = Some("www".to_owned());
    host.send(2, HostMessage::Exec(spec));
    assert!(host.finish(2).text().starts_with("uid=33(www) gid=34"));

    // An orphan becomes a child of the agent, which reaps it.
    let script = "(sh -c 'exit 0' & echo $! >/orphan); \
                  while kill -0 $(cat /orphan) 2>/dev/null; do sleep 0.01; done; echo reaped";
    assert_eq!(host.run(1, &["sh", "-c", script]).text(), "reaped\n");

    let status = host.run(1, &["cat", "/proc/1/smaps_rollup"]);
    let memory = status
        .text()
        .lines()
        .find(|line| line.starts_with("Anonymous:"));
    let memory = memory.unwrap().split_whitespace().nth(1).unwrap();
    eprintln!("anonymous memory of the agent: {memory} KiB; {boot:?}");
    assert!(memory.parse::<u64>().unwrap() < 2048, "{memory} KiB");
}

#[test]
fn a_guest_runs_64_commands_at_once_and_reports_out_of_memory() {
    let Some((_guest, mut host)) = Guest::boot() else {
        return;
    };
    // All of them run at the same time: each waits for input.
    for stream in 1..=64 {
        let script = format!("read line; exit {stream}");
        let mut spec = ExecSpec::new(format!("exec-{stream}"), ["sh", "-c", &script]);
        spec.stdin = true;
        host.send(stream, HostMessage::Exec(spec));
    }
    let mut started = 0;
    let mut codes = BTreeMap::new();
    while codes.len() < 64 {
        let frame = host.receive();
        match frame.message {
            PayloadMessage::Started { .. } => started += 1,
            PayloadMessage::Exited { ending } => drop(codes.insert(frame.stream, ending)),
            PayloadMessage::Credit { .. } => continue,
            message => panic!("{message:?}"),
        }
        if started == 64 && codes.is_empty() {
            for stream in 1..=64 {
                host.send(stream, HostMessage::Stdin(b"\n".to_vec()));
            }
            started = 0;
        }
    }
    let expected = (1..=64).map(|stream| {
        let code = i32::try_from(stream).unwrap();
        (stream, Ending::Exited { code })
    });
    assert_eq!(codes, expected.collect());

    // `tail` keeps a line that never ends.
    let outcome = host.run(1, &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(*outcome.ending(), Ending::OutOfMemory);
    // Only the process that the kernel has killed ran out of memory.
    let script = "tail -n 1 /dev/zero; echo $?; kill -9 $$";
    let outcome = host.run(1, &["sh", "-c", script]);
    assert_eq!(outcome.text(), "137\n");
    assert_eq!(*outcome.ending(), Ending::Signaled { signal: 9 });
}

#[test]
fn a_guest_ends_its_commands_and_powers_off() {
    let Some((mut guest, mut host)) = Guest::boot() else {
        return;
    };
    host.exec(
        1,
        &[
            "sh",
            "-c",
            "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        ],
    );
    host.exec(
        2,
        &[
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 0.05; done",
        ],
    );
    let mut ready = 0;
    while ready < 2 {
        ready += usize::from(matches!(host.receive().message, PayloadMessage::Stdout(_)));
    }
    let grace_millis = 600_000;
    host.send(0, HostMessage::Shutdown { grace_millis });
    let mut endings = BTreeMap::new();
    while endings.len() < 2 {
        let frame = host.receive();
        if let PayloadMessage::Exited { ending } = frame.message {
            endings.insert(frame.stream, ending);
            // A second request shortens the grace period, which has begun.
            host.send(0, HostMessage::Shutdown { grace_millis: 0 });
        }
    }
    let expected = [
        (1, Ending::Exited { code: 7 }),
        (2, Ending::Signaled { signal: 9 }),
    ];
    assert_eq!(endings, expected.into());
    assert!(guest.wait().success());
}

#[test]
fn a_guest_does_not_write_the_disk_below_its_overlay() {
    let Some((mut guest, mut host)) = Guest::boot() else {
        return;
    };
    let before = fs::read(guest.disk()).unwrap();
    let outcome = host.run(1, &["sh", "-c", "echo text >/file && cat /file"]);
    assert_eq!(outcome.text(), "text\n");
    host.send(0, HostMessage::Shutdown { grace_millis: 0 });
    assert!(guest.wait().success());
    assert!(fs::read(guest.disk()).unwrap() == before);
}

#[test]
fn a_shutdown_writes_a_writable_disk_and_unmounts_it() {
    let Some((mut guest, mut host)) = Guest::boot_with("vmm.overlay=off") else {
        return;
    };
    let outcome = host.run(1, &["sh", "-c", "echo text >/file"]);
    assert_eq!(*outcome.ending(), Ending::Exited { code: 0 });
    host.send(0, HostMessage::Shutdown { grace_millis: 0 });
    assert!(guest.wait().success());

    let mut debugfs = Command::new("/sbin/debugfs");
    let file = debugfs.args(["-R", "cat /file"]).arg(guest.disk()).output();
    assert_eq!(file.unwrap().stdout, b"text\n");
    let mut dumpe2fs = Command::new("/sbin/dumpe2fs");
    let header = dumpe2fs.arg("-h").arg(guest.disk()).output().unwrap();
    let header = String::from_utf8_lossy(&header.stdout).into_owned();
    assert!(!header.contains("needs_recovery"), "{header}");
}
