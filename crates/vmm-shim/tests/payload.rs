//! What a payload gets from its shim, and how it becomes ready.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use support::{LOOP, Shim, assert_fails, command, eventually, printed_value, sh, spec};
use vmm_shim::{ARGV0, Ending, FILES, FailureKind, PayloadSpec, Ready, Report};

#[test]
fn only_the_payload_loads_ld_preload_libraries() {
    let mut payload = sh("exit 3");
    let library = "/no/such/library.so";
    payload.env.insert("LD_PRELOAD".into(), library.into());
    let mut shim = Shim::start(payload);
    assert_eq!(shim.wait().code(), Some(3));
    // The dynamic loader prints one error for each program that it loads.
    let console = shim.console();
    assert_eq!(console.matches(library).count(), 1, "{console}");
}

#[test]
fn an_environment_of_any_size_and_content_reaches_the_payload() {
    let mut payload = sh("echo sizes=${#A},${#B},${#C}; printf %s \"$LINES_OF\"; exit 3");
    for name in ["A", "B", "C"] {
        payload.env.insert(name.into(), "x".repeat(100_000));
    }
    payload.env.insert("LINES_OF".into(), "a=b\nä=\n".into());
    let mut shim = Shim::start(payload.clone());
    assert_eq!(shim.wait().code(), Some(3));
    assert_eq!(shim.console(), "sizes=100000,100000,100000\na=b\nä=\n");
    // More than the kernel accepts, execve(2).
    payload.env.insert("D".into(), "x".repeat(1 << 20));
    let mut shim = Shim::start(payload);
    assert_eq!(shim.wait().code(), Some(126));
    assert_fails(&shim, FailureKind::NotExecutable);
}

#[test]
fn a_payload_with_a_broken_environment_exits_with_the_code_of_its_loader() {
    let broken = tempfile::tempdir().unwrap();
    fs::write(broken.path().join("libc.so.6"), "not a library").unwrap();
    let mut payload = sh("true");
    let path = broken.path().to_str().unwrap().to_owned();
    payload.env.insert("LD_LIBRARY_PATH".into(), path);
    let mut shim = Shim::start(payload);
    // The code of the dynamic loader, as in a shell.
    assert_eq!(shim.wait().code(), Some(127));
    assert_eq!(shim.record().ending, Ending::Exited { code: 127 });
    assert!(shim.console().contains("libc.so.6"), "{}", shim.console());
}

#[test]
fn readiness_is_reported_after_the_notification() {
    let notify = "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while not os.path.exists(os.environ['VMM_BOX_DIR'] + '/go'): time.sleep(0.01)
s.sendto(b'STATUS=up\\nREADY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)";
    let mut payload = PayloadSpec::command(["python3", "-c", notify]);
    payload.ready = Ready::Notified;
    let mut shim = Shim::start(payload);
    let is_published = || shim.path(FILES.payload_pid).exists();
    eventually(
        "payload.pid, which is written before the payload is ready",
        is_published,
    );
    let mut stdout = [PollFd::new(
        shim.stdout.as_ref().unwrap().get_ref().as_fd(),
        PollFlags::POLLIN,
    )];
    assert_eq!(poll(&mut stdout, PollTimeout::from(200_u8)), Ok(0));
    fs::write(shim.path("go"), "").unwrap();
    match shim.report() {
        Report::Ready { payload_pid, .. } => assert_eq!(payload_pid, Some(shim.payload_pid())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ready_payload_can_send_any_number_of_notifications() {
    let notify = "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ['NOTIFY_SOCKET'])
s.send(b'READY=1')
for _ in range(1000):
    try: s.send(b'WATCHDOG=1')
    except OSError: pass
print('sent', flush=True)
time.sleep(1000)";
    let mut payload = PayloadSpec::command(["python3", "-c", notify]);
    payload.ready = Ready::Notified;
    let mut shim = Shim::start(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.eventually_prints("sent");
    assert!(!shim.path(FILES.notify).exists());
}

#[test]
fn a_payload_in_a_long_path_can_notify() {
    let notify = "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)";
    let mut payload = PayloadSpec::command(["python3", "-c", notify]);
    payload.ready = Ready::Notified;
    let dir = tempfile::Builder::new().prefix(&"x".repeat(120)).tempdir();
    let mut shim = Shim::spawn_in(dir.unwrap(), &mut command());
    let line = spec(payload).to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert!(matches!(shim.report(), Report::Ready { .. }));
}

#[test]
fn a_payload_that_ends_before_it_is_ready_is_a_failure_with_its_own_code() {
    for (script, exit, code) in [
        ("exit 3", Ending::Exited { code: 3 }, 3),
        ("exit 0", Ending::Exited { code: 0 }, 125),
        ("kill -9 $$", Ending::Signaled { signal: 9 }, 137),
    ] {
        let mut payload = sh(script);
        payload.ready = Ready::Notified;
        let mut shim = Shim::start(payload);
        assert!(matches!(shim.report(), Report::Failed(_)));
        assert_eq!(shim.wait().code(), Some(code));
        assert_eq!(shim.record().ending, Ending::ended_early(exit));
    }
}

#[test]
fn a_payload_gets_only_its_environment_stdin_and_directory() {
    let mut payload = sh(
        "cat; echo color=$COLOR; echo id=$VMM_BOX_ID; echo home=$HOME; echo dir=$(pwd); \
         ls -l /proc/self/fd; grep SigBlk /proc/self/status",
    );
    payload.env.insert("COLOR".into(), "blue".into());
    payload.stdin = Some("text on stdin\n".into());
    payload.working_dir = Some("/usr".into());
    let mut shim = Shim::start(payload);
    assert_eq!(shim.wait().code(), Some(0));
    let console = shim.console();
    for line in ["text on stdin", "color=blue", "id=b1", "home=", "dir=/usr"] {
        assert!(console.lines().any(|l| l == line), "{line}: {console}");
    }
    // Only its stdout and stderr are pipes; it inherits no pipe of the shim.
    let pipes = console
        .lines()
        .filter_map(|line| line.split_once(" -> pipe:"));
    let pipes: Vec<_> = pipes.map(|(fd, _)| &fd[fd.len() - 2..]).collect();
    assert_eq!(pipes, [" 1", " 2"], "{console}");
    assert!(console.contains("SigBlk:\t0000000000000000"), "{console}");
}

/// Some programs reset their signal mask; sleep(1) does not.
#[test]
fn a_payload_has_no_signal_blocked() {
    let mut shim = Shim::start(PayloadSpec::command(["sleep", "1000"]));
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(143));
}

#[test]
fn the_soft_limit_of_descriptors_is_1024() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The shim inherits this limit.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let shim = Shim::start_loop("echo soft=$(ulimit -Sn); echo hard=$(ulimit -Hn);");
    assert_eq!(printed_value(&shim, "soft"), hard.min(1024).to_string());
    assert_eq!(printed_value(&shim, "hard"), hard.to_string());
}

/// A program that a shell executes inherits `trap '' SIGNAL`.
#[test]
fn ignored_signals_of_the_runtime_are_reset_for_shim_and_payload() {
    let ignoring = "import os, signal, sys
for s in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
    signal.signal(s, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[2:])";
    let mut command = Command::new("python3");
    command
        .args(["-c", ignoring, env!("CARGO_BIN_EXE_vmm-shim"), ARGV0])
        .args(support::invocation().args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut shim = Shim::spawn(&mut command);
    let script = "sed -n 's/SigIgn:.*\\t/ignored=/p' /proc/self/status; exit 7";
    let line = spec(sh(script)).to_line();
    let stdin = shim.stdin.as_mut().unwrap();
    stdin.write_all(&line.unwrap()).unwrap();
    assert_eq!(shim.wait().code(), Some(7));
    let ignored = printed_value(&shim, "ignored");
    let ignored = u64::from_str_radix(&ignored, 16).unwrap();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
    ] {
        assert_eq!(ignored >> (signal as i32 - 1) & 1, 0, "{signal}");
    }
}

#[test]
fn orphans_are_reaped_before_the_payload_is_ready() {
    let mut payload = sh(&format!("(sleep 0.01 & echo orphan=$!); {LOOP}"));
    payload.ready = Ready::Notified;
    let shim = Shim::start(payload);
    let orphan = Path::new("/proc").join(printed_value(&shim, "orphan"));
    eventually("the orphan is reaped", || !orphan.exists());
}
