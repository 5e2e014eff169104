//! The program `vmm-shim`, as a runtime starts it.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use support::{LOOP, Shim, command, eventually, pid, printed, runs, sh, spec};
use vmm_shim::{
    ARGV0, Ending, FILES, FailureKind, InstanceSpec, KILL_SIGNAL, PayloadSpec, PidRecord,
    ProcessIdentity, Ready, Report,
};

#[test]
fn the_payloads_code_is_the_shims_and_on_record() {
    let mut shim = Shim::of(sh("exit 7"));
    assert_eq!(shim.wait().code(), Some(7));
    let record = shim.record();
    assert_eq!(record.pid, shim.child.id());
    assert_eq!(record.ending, Ending::Exited { code: 7 });
    assert!(!record.requested);
}

#[test]
fn a_signal_that_ends_the_payload_is_on_record_and_shown_as_a_shell_does() {
    let mut shim = Shim::of(sh("kill -SEGV $$"));
    assert_eq!(shim.wait().code(), Some(139));
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 11 });
}

#[test]
fn sigterm_is_passed_on_and_the_end_counts_as_requested() {
    let mut shim = Shim::running("trap 'exit 5' TERM;");
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(5));
    assert!(shim.record().requested);
}

#[test]
fn it_publishes_who_it_is_before_it_is_told_anything() {
    let shim = Shim::without_spec();
    eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
    let record = PidRecord::read(&shim.path(FILES.shim_pid))
        .unwrap()
        .unwrap();
    assert_eq!(record.pid, shim.child.id());
    let now = ProcessIdentity::of(record.pid).unwrap().unwrap();
    assert_eq!(record.identity, Some(now));
}

#[test]
fn the_kill_signal_ends_every_descendant_and_is_on_record() {
    let script = "setsid sleep 1000 & echo stray=$!; trap '' TERM;";
    let mut shim = Shim::running(script);
    let stray = printed(&shim, "stray").parse().unwrap();
    let payload = shim.payload_pid();
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
    assert!(shim.record().requested);
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 9 });
    assert!(!runs(stray) && !runs(payload));
}

#[test]
fn what_the_payload_leaves_behind_ends_with_it() {
    let mut shim = Shim::of(sh("setsid sleep 1000 & echo stray=$!; exit 0"));
    assert_eq!(shim.wait().code(), Some(0));
    let stray = printed(&shim, "stray").parse().unwrap();
    assert!(!runs(stray));
}

#[test]
fn a_payload_dies_with_its_shim() {
    let mut shim = Shim::running("trap '' TERM;");
    let payload = shim.payload_pid();
    shim.signal(Signal::SIGKILL);
    shim.wait();
    eventually("the end of the payload", || !runs(payload));
    assert!(!shim.path(FILES.exit).exists());
}

#[test]
fn it_stops_when_the_watchdog_hangs_up() {
    let mut shim = Shim::running("trap 'exit 4' TERM;");
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(4));
    assert!(shim.record().requested);
}

#[test]
fn it_kills_a_payload_that_outstays_the_grace_of_the_watchdog() {
    let payload = sh(&format!("trap '' TERM; echo begun; {LOOP}"));
    let spec = InstanceSpec {
        stop_grace_ms: 50,
        ..spec(payload)
    };
    let mut shim = Shim::told(&spec.to_line().unwrap());
    shim.eventually_prints("begun");
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
}

#[test]
fn a_detached_one_has_no_watchdog() {
    let detached = InstanceSpec {
        detached: true,
        ..spec(sh(
            "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.02; done; exit 6",
        ))
    };
    let mut shim = Shim::told(&detached.to_line().unwrap());
    assert!(matches!(shim.report(), Report::Ready { .. }));
    drop(shim.stdin.take());
    // It must not end now; what it does instead is to wait for this file.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(shim.child.try_wait().unwrap(), None);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(6));
}

#[test]
fn a_detached_start_that_nobody_waits_for_any_more_is_given_up() {
    let script = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.02; done;
        python3 -c \"import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\"; sleep 1000";
    let mut payload = sh(script);
    payload.ready = Ready::Notified;
    let detached = InstanceSpec {
        detached: true,
        ..spec(payload)
    };
    let mut shim = Shim::told(&detached.to_line().unwrap());
    drop(shim.stdin.take());
    drop(shim.stdout.take());
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Engine);
}

#[test]
fn a_runtime_that_dies_before_it_has_told_anything_ends_it() {
    let mut shim = Shim::without_spec();
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Spec);
}

#[test]
fn a_malformed_spec_is_on_record_without_its_secrets() {
    let mut shim = Shim::told(b"{\"id\":\"b1\",\"payload\":\"hunter2\"}\n");
    assert!(matches!(shim.report(), Report::Failed(_)));
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Spec);
    for file in fs::read_dir(&shim.dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
}

fn assert_fails(shim: &Shim, expected: FailureKind) {
    match shim.record().ending {
        Ending::Failed { kind, message } => {
            assert_eq!(kind, expected, "{message}");
            assert!(!message.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_run_is_told_by_kind_and_by_code() {
    let mut no_dir = sh("true");
    no_dir.working_dir = Some("/nowhere".into());
    let mut no_engine = sh("true");
    let scripts = tempfile::tempdir().unwrap();
    let script = scripts.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut bare_name = PayloadSpec::command(["script"]);
    bare_name.env.insert("PATH".into(), path(scripts.path()));
    no_engine.engine = "warp".into();
    for (payload, kind, code) in [
        (
            PayloadSpec::command(["no-such-program"]),
            FailureKind::NotFound,
            127,
        ),
        (
            PayloadSpec::command(["/etc/passwd"]),
            FailureKind::NotExecutable,
            126,
        ),
        (
            PayloadSpec::command([path(&script)]),
            FailureKind::NotExecutable,
            126,
        ),
        (bare_name, FailureKind::NotExecutable, 126),
        (PayloadSpec::default(), FailureKind::Spec, 125),
        (sh("nul \0"), FailureKind::Spec, 125),
        (no_dir, FailureKind::Spec, 125),
        (no_engine, FailureKind::UnknownEngine, 125),
    ] {
        let mut shim = Shim::of(payload);
        let reported = shim.report();
        assert_eq!(shim.wait().code(), Some(code));
        assert_fails(&shim, kind);
        assert_eq!(reported, Report::Failed(shim.record()));
    }
}

#[test]
fn what_a_payload_preloads_is_loaded_by_the_payload_alone() {
    let mut payload = sh("exit 3");
    let library = "/no/such/library.so";
    payload.env.insert("LD_PRELOAD".into(), library.into());
    let mut shim = Shim::of(payload);
    assert_eq!(shim.wait().code(), Some(3));
    // The loader complains once for each program that it loads.
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
    let mut shim = Shim::of(payload.clone());
    assert_eq!(shim.wait().code(), Some(3));
    assert_eq!(shim.console(), "sizes=100000,100000,100000\na=b\nä=\n");
    // More than the kernel takes, execve(2).
    payload.env.insert("D".into(), "x".repeat(1 << 20));
    let mut shim = Shim::of(payload);
    assert_eq!(shim.wait().code(), Some(126));
    assert_fails(&shim, FailureKind::NotExecutable);
}

#[test]
fn a_payload_whose_environment_breaks_every_program_fails_as_that_program() {
    let broken = tempfile::tempdir().unwrap();
    fs::write(broken.path().join("libc.so.6"), "no library").unwrap();
    let mut payload = sh("true");
    let path = broken.path().to_str().unwrap().to_owned();
    payload.env.insert("LD_LIBRARY_PATH".into(), path);
    let mut shim = Shim::of(payload);
    // The loader's, as under a shell.
    assert_eq!(shim.wait().code(), Some(127));
    assert_eq!(shim.record().ending, Ending::Exited { code: 127 });
    assert!(shim.console().contains("libc.so.6"), "{}", shim.console());
}

#[test]
fn readiness_is_reported_when_the_payload_says_so() {
    let notify = "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while not os.path.exists(os.environ['VMM_BOX_DIR'] + '/go'): time.sleep(0.01)
s.sendto(b'STATUS=up\\nREADY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)";
    let mut payload = PayloadSpec::command(["python3", "-c", notify]);
    payload.ready = Ready::Notified;
    let mut shim = Shim::of(payload);
    let is_published = || shim.path(FILES.payload_pid).exists();
    eventually(
        "payload.pid, which does not wait for readiness",
        is_published,
    );
    let mut stdout = [PollFd::new(
        shim.stdout.as_ref().unwrap().get_ref().as_fd(),
        PollFlags::POLLIN,
    )];
    assert_eq!(poll(&mut stdout, PollTimeout::from(200_u8)), Ok(0));
    fs::write(shim.path("go"), "").unwrap();
    match shim.report() {
        Report::Ready { payload_pid } => assert_eq!(payload_pid, Some(shim.payload_pid())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ready_payload_may_notify_as_often_as_it_likes() {
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
    let mut shim = Shim::of(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.eventually_prints("sent");
    assert!(!shim.path(FILES.notify).exists());
}

#[test]
fn a_payload_can_notify_although_the_path_of_its_box_is_long() {
    let notify = "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)";
    let mut payload = PayloadSpec::command(["python3", "-c", notify]);
    payload.ready = Ready::Notified;
    let dir = tempfile::Builder::new().prefix(&"x".repeat(120)).tempdir();
    let mut shim = Shim::in_dir(dir.unwrap(), &mut command());
    let line = spec(payload).to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert!(matches!(shim.report(), Report::Ready { .. }));
}

#[test]
fn a_payload_that_ends_before_it_is_ready_is_a_failure() {
    let mut payload = sh("exit 3");
    payload.ready = Ready::Notified;
    let mut shim = Shim::of(payload);
    assert!(matches!(shim.report(), Report::Failed(_)));
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Engine);
}

#[test]
fn a_payload_gets_its_environment_stdin_and_directory_and_nothing_else() {
    let mut payload = sh(
        "cat; echo color=$COLOR; echo id=$VMM_BOX_ID; echo home=$HOME; echo dir=$(pwd); \
         ls -l /proc/self/fd; grep SigBlk /proc/self/status",
    );
    payload.env.insert("COLOR".into(), "blue".into());
    payload.stdin = Some("said on stdin\n".into());
    payload.working_dir = Some("/usr".into());
    let mut shim = Shim::of(payload);
    assert_eq!(shim.wait().code(), Some(0));
    let console = shim.console();
    for line in ["said on stdin", "color=blue", "id=b1", "home=", "dir=/usr"] {
        assert!(console.lines().any(|l| l == line), "{line}: {console}");
    }
    // Of its own stdout and stderr, and of no line of the shim.
    let pipes = console
        .lines()
        .filter_map(|line| line.split_once(" -> pipe:"));
    let pipes: Vec<_> = pipes.map(|(fd, _)| &fd[fd.len() - 2..]).collect();
    assert_eq!(pipes, [" 1", " 2"], "{console}");
    assert!(console.contains("SigBlk:\t0000000000000000"), "{console}");
}

/// Some programs empty their signal mask; this one does not.
#[test]
fn a_payload_has_no_signal_blocked() {
    let mut shim = Shim::of(PayloadSpec::command(["sleep", "1000"]));
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(143));
}

#[test]
fn a_payload_has_no_more_descriptors_than_every_program_can_bear() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Which the shim inherits.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let shim = Shim::running("echo soft=$(ulimit -Sn); echo hard=$(ulimit -Hn);");
    assert_eq!(printed(&shim, "soft"), hard.min(1024).to_string());
    assert_eq!(printed(&shim, "hard"), hard.to_string());
}

#[test]
fn it_leaves_the_session_of_whoever_started_it() {
    let shim = Shim::running("");
    let session = nix::unistd::getsid(Some(pid(shim.child.id()))).unwrap();
    assert_eq!(session, pid(shim.child.id()));
    assert_ne!(kill(pid(shim.payload_pid()), None), Err(Errno::ESRCH));
    let group = nix::unistd::getpgid(Some(pid(shim.payload_pid()))).unwrap();
    assert_eq!(group, pid(shim.payload_pid()));
}

#[test]
fn run_by_hand_it_says_what_it_is_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-shim"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("RuntimeOptions::shim_program"), "{said}");
}

#[test]
fn files_of_a_box_are_readable_by_their_owner_only() {
    let mut shim = Shim::of(sh("echo x"));
    shim.wait();
    for name in [FILES.shim_pid, FILES.exit, FILES.console] {
        let mode = fs::metadata(shim.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

/// A box's directory that has gone is no reason to hang.
#[test]
fn it_ends_although_its_directory_is_gone() {
    let mut shim = Shim::running("");
    fs::remove_dir_all(Path::new(shim.dir.path())).unwrap();
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
}

/// So that a console that fills the disk cannot keep it from being written.
#[test]
fn room_for_the_exit_record_is_kept_from_the_start() {
    use std::os::unix::fs::MetadataExt;
    let mut shim = Shim::running("");
    let room = fs::metadata(shim.path(".exit.tmp")).unwrap();
    assert!(room.len() >= 4096);
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert_eq!(
        fs::metadata(shim.path(FILES.exit)).unwrap().ino(),
        room.ino()
    );
}

#[test]
fn a_stderr_that_takes_nothing_changes_neither_code_nor_report() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut shim = Shim::printing_to(full.into());
    eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
    fs::remove_dir_all(shim.dir.path()).unwrap();
    let spec = spec(PayloadSpec::command(["no-such-program"]));
    let line = spec.to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert!(matches!(shim.report(), Report::Failed(_)));
    assert_ne!(shim.wait().code(), Some(101));
}

#[test]
fn an_order_that_comes_before_the_spec_is_obeyed_at_once() {
    for (signal, code) in [(Signal::SIGTERM, 143), (KILL_SIGNAL, 137)] {
        let mut shim = Shim::without_spec();
        eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
        shim.signal(signal);
        assert_eq!(shim.wait().code(), Some(code));
        assert!(shim.record().requested);
        assert_eq!(shim.report(), Report::Failed(shim.record()));
    }
}

/// As from `trap '' SIGNAL` in a shell, which what it executes inherits.
#[test]
fn what_the_runtime_ignores_is_not_ignored_by_shim_and_payload() {
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
    let mut shim = Shim::started_by(&mut command);
    let script = "sed -n 's/SigIgn:.*\\t/ignored=/p' /proc/self/status; exit 7";
    let line = spec(sh(script)).to_line();
    let stdin = shim.stdin.as_mut().unwrap();
    stdin.write_all(&line.unwrap()).unwrap();
    assert_eq!(shim.wait().code(), Some(7));
    let ignored = printed(&shim, "ignored");
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
fn a_stopped_payload_can_obey_the_order_to_stop() {
    let mut shim = Shim::running("");
    kill(pid(shim.payload_pid()), Signal::SIGSTOP).unwrap();
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(143));
}

#[test]
fn orphans_are_collected_before_the_payload_is_ready() {
    let mut payload = sh(&format!("(sleep 0.01 & echo orphan=$!); {LOOP}"));
    payload.ready = Ready::Notified;
    let shim = Shim::of(payload);
    let orphan = Path::new("/proc").join(printed(&shim, "orphan"));
    eventually("the orphan is no zombie", || !orphan.exists());
}

/// Not every signal has a name.
#[test]
fn an_orphan_that_a_real_time_signal_ends_is_no_failure() {
    let script = "(sleep 1000 & echo $! > $VMM_BOX_DIR/orphan)
orphan=$(cat $VMM_BOX_DIR/orphan)
kill -40 $orphan
while [ -e /proc/$orphan ]; do sleep 0.02; done
exit 8";
    let mut shim = Shim::of(sh(script));
    assert_eq!(shim.wait().code(), Some(8));
}

#[test]
fn a_real_time_signal_that_ends_the_payload_is_on_record() {
    let mut shim = Shim::of(sh("kill -40 $$"));
    assert_eq!(shim.wait().code(), Some(168));
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 40 });
}

#[test]
fn a_second_shim_leaves_the_box_to_the_first() {
    let mut shim = Shim::running("");
    let published = fs::read(shim.path(FILES.shim_pid)).unwrap();
    let second = command().current_dir(&shim.dir).output().unwrap();
    assert_eq!(second.status.code(), Some(125));
    assert!(!second.stderr.is_empty());
    match serde_json::from_slice(&second.stdout).unwrap() {
        Report::Failed(record) => assert!(matches!(
            record.ending,
            Ending::Failed {
                kind: FailureKind::InUse,
                ..
            }
        )),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(shim.path(FILES.shim_pid)).unwrap(), published);
    assert!(!shim.path(FILES.exit).exists());
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
    assert_eq!(shim.record().pid, shim.child.id());
}

#[test]
fn the_shim_of_a_box_that_is_started_by_hand_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = command()
        .stdin(Stdio::null())
        .current_dir(&dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_console_that_leads_elsewhere_is_a_failure_and_not_written_to() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join(FILES.console)).unwrap();
    let mut shim = Shim::in_dir(dir, &mut command());
    let line = spec(sh("echo x")).to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Storage);
    assert_eq!(fs::metadata(&elsewhere).unwrap().len(), 0);
}

#[test]
fn a_limit_on_the_size_of_files_does_not_end_the_shim() {
    let program = Path::new(env!("CARGO_BIN_EXE_vmm-shim"));
    let mut limited = Command::new("/bin/sh");
    limited
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh", ARGV0])
        .args(support::invocation().args())
        .env("PATH", program.parent().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut shim = Shim::started_by(&mut limited);
    assert_eq!(shim.wait().code(), Some(125));
    assert!(matches!(shim.report(), Report::Failed(_)));
}

#[test]
fn a_payload_whose_descendant_traces_it_ends_when_it_exits() {
    // The descendant never waits, which keeps the zombie from the shim.
    let script = "import ctypes, os, time
PTRACE_SEIZE = 0x4206
traced = os.environ['VMM_BOX_DIR'] + '/traced'
if os.fork() == 0:
    if ctypes.CDLL(None).ptrace(PTRACE_SEIZE, os.getppid(), 0, 0) == 0:
        open(traced, 'w')
    time.sleep(1000)
while not os.path.exists(traced): time.sleep(0.01)
os._exit(5)";
    // One that never reported to be ready has failed to start.
    for (ready, code) in [(Ready::Started, 5), (Ready::Notified, 125)] {
        let mut payload = PayloadSpec::command(["python3", "-c", script]);
        payload.ready = ready;
        let mut shim = Shim::of(payload);
        assert_eq!(shim.wait().code(), Some(code), "{ready:?}");
    }
}
