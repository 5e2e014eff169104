//! The life of a shim: start, signals, watchdog, exit record.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use support::{
    LOOP, Shim, assert_fails, command, eventually, is_running, pid, printed_value, sh, spec,
};
use vmm_shim::{
    ARGV0, Ending, FILES, FailureKind, InstanceSpec, KILL_SIGNAL, PayloadSpec, PidRecord,
    ProcessIdentity, Ready, Report,
};

#[test]
fn the_exit_code_of_the_payload_is_returned_and_recorded() {
    let mut shim = Shim::start(sh("exit 7"));
    assert_eq!(shim.wait().code(), Some(7));
    let record = shim.record();
    assert_eq!(record.pid, shim.child.id());
    assert_eq!(record.ending, Ending::Exited { code: 7 });
    assert!(!record.requested);
}

#[test]
fn a_signal_that_ends_the_payload_is_recorded_and_returned_as_a_shell_code() {
    let mut shim = Shim::start(sh("kill -SEGV $$"));
    assert_eq!(shim.wait().code(), Some(139));
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 11 });
}

#[test]
fn sigterm_is_passed_on_and_the_end_is_recorded_as_requested() {
    let mut shim = Shim::start_loop("trap 'exit 5' TERM;");
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(5));
    assert!(shim.record().requested);
}

#[test]
fn the_pid_record_is_written_before_the_spec_arrives() {
    let shim = Shim::without_spec();
    eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
    let record = PidRecord::read(&shim.path(FILES.shim_pid))
        .unwrap()
        .unwrap();
    assert_eq!(record.pid, shim.child.id());
    let current = ProcessIdentity::of(record.pid).unwrap().unwrap();
    assert_eq!(record.identity, Some(current));
}

#[test]
fn the_kill_signal_kills_every_descendant_and_is_recorded() {
    let script = "setsid sleep 1000 & echo orphan=$!; trap '' TERM;";
    let mut shim = Shim::start_loop(script);
    let orphan = printed_value(&shim, "orphan").parse().unwrap();
    let payload = shim.payload_pid();
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
    assert!(shim.record().requested);
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 9 });
    assert!(!is_running(orphan) && !is_running(payload));
}

#[test]
fn orphans_of_the_payload_are_killed() {
    let mut shim = Shim::start(sh("setsid sleep 1000 & echo orphan=$!; exit 0"));
    assert_eq!(shim.wait().code(), Some(0));
    let orphan = printed_value(&shim, "orphan").parse().unwrap();
    assert!(!is_running(orphan));
}

#[test]
fn a_payload_dies_with_its_shim() {
    let mut shim = Shim::start_loop("trap '' TERM;");
    let payload = shim.payload_pid();
    shim.signal(Signal::SIGKILL);
    shim.wait();
    eventually("the exit of the payload", || !is_running(payload));
    assert!(!shim.path(FILES.exit).exists());
}

#[test]
fn the_payload_is_stopped_when_the_watchdog_hangs_up() {
    let mut shim = Shim::start_loop("trap 'exit 4' TERM;");
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(4));
    assert!(shim.record().requested);
}

#[test]
fn the_payload_is_killed_after_the_grace_period_of_the_watchdog() {
    let payload = sh(&format!("trap '' TERM; echo started; {LOOP}"));
    let spec = InstanceSpec {
        stop_grace_ms: 50,
        ..spec(payload)
    };
    let mut shim = Shim::with_input(&spec.to_line().unwrap());
    shim.eventually_prints("started");
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(137));
}

#[test]
fn a_detached_shim_has_no_watchdog() {
    let detached = InstanceSpec {
        detached: true,
        ..spec(sh(
            "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.02; done; exit 6",
        ))
    };
    let mut shim = Shim::with_input(&detached.to_line().unwrap());
    assert!(matches!(shim.report(), Report::Ready { .. }));
    drop(shim.stdin.take());
    drop(shim.stdout.take());
    // The shim must not exit now. Its payload waits for the file `go`.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(shim.child.try_wait().unwrap(), None);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(6));
}

#[test]
fn a_detached_start_fails_if_its_runtime_exits_although_its_payload_never_becomes_ready() {
    let mut payload = sh("sleep 1000");
    payload.ready = Ready::Notified;
    let detached = InstanceSpec {
        detached: true,
        ..spec(payload)
    };
    let mut shim = Shim::with_input(&detached.to_line().unwrap());
    eventually("a payload", || shim.path(FILES.payload_pid).exists());
    let payload = shim.payload_pid();
    drop(shim.stdin.take());
    drop(shim.stdout.take());
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Engine);
    assert!(!is_running(payload));
}

#[test]
fn a_shim_exits_if_its_runtime_dies_before_the_spec() {
    let mut shim = Shim::without_spec();
    drop(shim.stdin.take());
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Spec);
}

#[test]
fn the_record_of_an_invalid_spec_contains_no_secrets() {
    let mut shim = Shim::with_input(b"{\"id\":\"b1\",\"payload\":\"hunter2\"}\n");
    assert!(matches!(shim.report(), Report::Failed(_)));
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Spec);
    for file in fs::read_dir(&shim.dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_payload_that_cannot_run_has_a_failure_kind_and_a_code() {
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
        let mut shim = Shim::start(payload);
        let reported = shim.report();
        assert_eq!(shim.wait().code(), Some(code));
        assert_fails(&shim, kind);
        assert_eq!(reported, Report::Failed(shim.record()));
    }
}

#[test]
fn a_shim_has_its_own_session_and_its_payload_its_own_group() {
    let shim = Shim::start_loop("");
    let session = nix::unistd::getsid(Some(pid(shim.child.id()))).unwrap();
    assert_eq!(session, pid(shim.child.id()));
    assert_ne!(kill(pid(shim.payload_pid()), None), Err(Errno::ESRCH));
    let group = nix::unistd::getpgid(Some(pid(shim.payload_pid()))).unwrap();
    assert_eq!(group, pid(shim.payload_pid()));
}

#[test]
fn a_manual_start_prints_a_hint() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-shim"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("RuntimeOptions::shim_program"),
        "{message}"
    );
}

#[test]
fn only_the_owner_can_read_the_files_of_a_box() {
    let mut shim = Shim::start(sh("echo x"));
    shim.wait();
    for name in [FILES.shim_pid, FILES.exit, FILES.console] {
        let mode = fs::metadata(shim.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_shim_without_its_box_directory_exits() {
    let mut shim = Shim::start_loop("");
    fs::remove_dir_all(Path::new(shim.dir.path())).unwrap();
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
}

/// The record can then be written even if the console has filled the disk.
#[test]
fn disk_space_for_the_exit_record_is_reserved_at_the_start() {
    use std::os::unix::fs::MetadataExt;
    let mut shim = Shim::start_loop("");
    let reserved = fs::metadata(shim.path(".exit.tmp")).unwrap();
    assert!(reserved.len() >= 4096);
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert_eq!(
        fs::metadata(shim.path(FILES.exit)).unwrap().ino(),
        reserved.ino()
    );
}

#[test]
fn a_full_stderr_affects_neither_code_nor_report() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut shim = Shim::with_stderr(full.into());
    eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
    fs::remove_dir_all(shim.dir.path()).unwrap();
    let spec = spec(PayloadSpec::command(["no-such-program"]));
    let line = spec.to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert!(matches!(shim.report(), Report::Failed(_)));
    assert_ne!(shim.wait().code(), Some(101));
}

#[test]
fn a_signal_before_the_spec_ends_the_shim_immediately() {
    for (signal, code) in [(Signal::SIGTERM, 143), (KILL_SIGNAL, 137)] {
        let mut shim = Shim::without_spec();
        eventually("shim.pid", || shim.path(FILES.shim_pid).exists());
        shim.signal(signal);
        assert_eq!(shim.wait().code(), Some(code));
        assert!(shim.record().requested);
        assert_eq!(shim.report(), Report::Failed(shim.record()));
    }
}

#[test]
fn a_payload_stopped_by_a_signal_handles_sigterm() {
    let mut shim = Shim::start_loop("");
    kill(pid(shim.payload_pid()), Signal::SIGSTOP).unwrap();
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.wait().code(), Some(143));
}

/// nix cannot represent real-time signals.
#[test]
fn an_orphan_ended_by_a_real_time_signal_is_reaped() {
    let script = "(sleep 1000 & echo $! > $VMM_BOX_DIR/orphan)
orphan=$(cat $VMM_BOX_DIR/orphan)
kill -40 $orphan
while [ -e /proc/$orphan ]; do sleep 0.02; done
exit 8";
    let mut shim = Shim::start(sh(script));
    assert_eq!(shim.wait().code(), Some(8));
}

#[test]
fn a_real_time_signal_that_ends_the_payload_is_recorded() {
    let mut shim = Shim::start(sh("kill -40 $$"));
    assert_eq!(shim.wait().code(), Some(168));
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 40 });
}

#[test]
fn a_second_shim_does_not_touch_the_box_of_the_first() {
    let mut shim = Shim::start_loop("");
    let pid_record = fs::read(shim.path(FILES.shim_pid)).unwrap();
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
    assert_eq!(fs::read(shim.path(FILES.shim_pid)).unwrap(), pid_record);
    assert!(!shim.path(FILES.exit).exists());
    shim.signal(KILL_SIGNAL);
    assert_eq!(shim.wait().code(), Some(137));
    assert_eq!(shim.record().pid, shim.child.id());
}

#[test]
fn a_manually_started_shim_changes_no_file() {
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
fn a_symbolic_link_in_place_of_the_console_is_rejected() {
    let target = tempfile::NamedTempFile::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join(FILES.console)).unwrap();
    let mut shim = Shim::spawn_in(dir, &mut command());
    let line = spec(sh("echo x")).to_line().unwrap();
    shim.stdin.as_mut().unwrap().write_all(&line).unwrap();
    assert_eq!(shim.wait().code(), Some(125));
    assert_fails(&shim, FailureKind::Storage);
    assert_eq!(fs::metadata(&target).unwrap().len(), 0);
}

#[test]
fn a_limit_on_file_sizes_does_not_kill_the_shim() {
    let program = Path::new(env!("CARGO_BIN_EXE_vmm-shim"));
    let mut limited = Command::new("/bin/sh");
    limited
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh", ARGV0])
        .args(support::invocation().args())
        .env("PATH", program.parent().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut shim = Shim::spawn(&mut limited);
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
    let exited = Ending::Exited { code: 5 };
    for (ready, ending) in [
        (Ready::Started, exited.clone()),
        // One that never reported to be ready has failed to start.
        (Ready::Notified, Ending::ended_early(exited)),
    ] {
        let mut payload = PayloadSpec::command(["python3", "-c", script]);
        payload.ready = ready;
        let mut shim = Shim::start(payload);
        assert_eq!(shim.wait().code(), Some(5), "{ready:?}");
        assert_eq!(shim.record().ending, ending);
    }
}

#[test]
fn the_program_prints_its_version() {
    let program = env!("CARGO_BIN_EXE_vmm-shim");
    let output = Command::new(program).arg("--version").output().unwrap();
    assert!(output.status.success());
    let expected = format!("vmm-shim {}\n", vmm_shim::VERSION);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}
