use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::record::FileVersion;
use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

/// Returns a subject with a QEMU and a kernel of these inodes.
fn subject(qemu: u64, kernel: u64) -> Subject {
    let version = |inode| FileVersion {
        device: 1,
        inode,
        size: 2,
        changed: 3,
    };
    Subject {
        boot_id: Some("b".into()),
        qemu: Some(version(qemu)),
        kernel: version(kernel),
    }
}

/// Returns why KVM cannot be used.
fn unusable(result: Result<impl std::fmt::Debug, CheckError>) -> String {
    match result {
        Err(CheckError::Unusable(reason)) => reason,
        result => panic!("{result:?}"),
    }
}

#[test]
fn a_process_that_hangs_is_killed_after_its_timeout() {
    let begun = Instant::now();
    let hangs = shell("echo booting; exec sleep 1000");
    let reason = unusable(run(hangs, Duration::from_secs(5)));
    assert_eq!(reason, "booting (no end within 5s)");
    assert!(begun.elapsed() < Duration::from_secs(100));
}

#[test]
fn a_descendant_that_keeps_the_output_open_delays_nothing() {
    let exit = run(shell("sleep 60 & echo $!"), TRIAL_TIMEOUT).unwrap();
    let descendant = Pid::from_raw(exit.output.trim().parse().unwrap());
    // It still runs.
    kill(descendant, Signal::SIGKILL).unwrap();
}

#[test]
fn a_process_that_aborts_is_a_failure_with_what_it_printed() {
    let aborts = shell("echo 'failed to set MSR' >&2; kill -ABRT $$");
    let reason = unusable(run(aborts, TRIAL_TIMEOUT).unwrap().expect_panic());
    assert_eq!(reason, "failed to set MSR (signal 6)");
    let fails = run(shell("exit 1"), TRIAL_TIMEOUT).unwrap();
    assert_eq!(unusable(fails.expect_code(0)), "exit code 1");
}

#[test]
fn a_process_that_is_killed_shows_nothing_about_kvm() {
    let killed = || run(shell("kill -KILL $$"), TRIAL_TIMEOUT).unwrap();
    for result in [killed().expect_code(0), killed().expect_panic()] {
        assert!(
            matches!(&result, Err(CheckError::NotRun(reason)) if reason == "signal 9"),
            "{result:?}"
        );
    }
}

#[test]
fn a_kernel_with_many_warnings_works() {
    let script = "head -c 20000 /dev/zero | tr '\\0' w; echo 'Kernel panic'";
    let exit = run(shell(script), TRIAL_TIMEOUT).unwrap();
    exit.expect_panic().unwrap();
}

#[test]
fn an_unusable_kvm_is_tcg_for_auto_and_an_error_for_kvm() {
    let check = || Err(CheckError::Unusable("no end within 5s".to_owned()));
    let auto = decide(Accelerator::Auto, None, subject(1, 1), check).unwrap();
    assert_eq!(auto, Accelerator::Tcg);
    let error = decide(Accelerator::Kvm, None, subject(1, 1), check).unwrap_err();
    assert!(matches!(error, EngineError::KvmUnusable { .. }));
    assert!(error.to_string().contains("no end within 5s"), "{error}");
    for requested in [Accelerator::Auto, Accelerator::Kvm] {
        let chosen = decide(requested, None, subject(1, 1), || Ok(())).unwrap();
        assert_eq!(chosen, Accelerator::Kvm);
    }
}

#[test]
fn a_kernel_that_cannot_be_opened_is_its_own_error_where_kvm_is_checked() {
    let payload = QemuOptions::new("/missing/kernel").to_payload();
    let spec = InstanceSpec::new("b1", payload);
    let choose = |accelerator| {
        let mut options = QemuOptions::of(&spec.payload).unwrap();
        options.accelerator = accelerator;
        choose(&spec, &options)
    };
    assert_eq!(choose(Accelerator::Tcg).unwrap(), Accelerator::Tcg);
    for requested in [Accelerator::Auto, Accelerator::Kvm] {
        let error = choose(requested).unwrap_err();
        assert!(matches!(error, EngineError::GuestFile { .. }), "{error:?}");
    }
}

fn unusable_kvm() -> Result<(), CheckError> {
    Err(CheckError::Unusable("no".to_owned()))
}

#[test]
fn a_result_is_kept_for_the_host_its_qemu_and_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let checks = Cell::new(0);
    let decide = |requested, subject, result: Result<(), CheckError>| {
        decide(requested, Some(&cache), subject, || {
            checks.set(checks.get() + 1);
            result
        })
    };
    for _ in 0..2 {
        let chosen = decide(Accelerator::Auto, subject(1, 1), unusable_kvm()).unwrap();
        assert_eq!((chosen, checks.get()), (Accelerator::Tcg, 1));
    }
    // Another QEMU, and another kernel.
    decide(Accelerator::Auto, subject(2, 1), unusable_kvm()).unwrap();
    assert_eq!(checks.get(), 2);
    decide(Accelerator::Auto, subject(2, 2), unusable_kvm()).unwrap();
    assert_eq!(checks.get(), 3);
    // A failure does not count for an explicit request, a success does.
    decide(Accelerator::Kvm, subject(2, 2), Ok(())).unwrap();
    assert_eq!(checks.get(), 4);
    let chosen = decide(Accelerator::Kvm, subject(2, 2), unusable_kvm()).unwrap();
    assert_eq!((chosen, checks.get()), (Accelerator::Kvm, 4));
}

#[test]
fn kernels_of_two_file_systems_have_records_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let here = subject(1, 1);
    let mut there = here.clone();
    there.kernel.device = 2;
    let decide = |subject: &Subject, result| {
        decide(Accelerator::Auto, Some(dir.path()), subject.clone(), || {
            result
        })
    };
    assert_eq!(decide(&here, Ok(())).unwrap(), Accelerator::Kvm);
    assert_eq!(decide(&there, unusable_kvm()).unwrap(), Accelerator::Tcg);
    assert_eq!(decide(&here, unusable_kvm()).unwrap(), Accelerator::Kvm);
}

#[test]
fn a_check_that_could_not_run_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let decide = |result| {
        decide(Accelerator::Auto, Some(dir.path()), subject(1, 1), || {
            result
        })
    };
    let not_run = Err(CheckError::NotRun("no descriptor is left".to_owned()));
    assert_eq!(decide(not_run).unwrap(), Accelerator::Tcg);
    assert_eq!(decide(Ok(())).unwrap(), Accelerator::Kvm);
    let missing = run(Command::new("/missing/qemu"), TRIAL_TIMEOUT);
    assert!(matches!(missing, Err(CheckError::NotRun(_))), "{missing:?}");
}

#[test]
fn guests_that_start_at_once_share_one_check() {
    let dir = tempfile::tempdir().unwrap();
    let checks = AtomicU32::new(0);
    let check = || {
        checks.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(200));
        unusable_kvm()
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let chosen = decide(Accelerator::Auto, Some(dir.path()), subject(1, 1), check);
                assert_eq!(chosen.unwrap(), Accelerator::Tcg);
            });
        }
    });
    assert_eq!(checks.into_inner(), 1);
}

#[test]
fn a_check_of_another_guest_that_hangs_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("kvm.json");
    let lock = RecordLock::take(&record, Duration::ZERO).unwrap();
    assert!(!lock.has_waited);
    let timeout = Duration::from_millis(100);
    let error = RecordLock::take(&record, timeout).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    drop(lock);
    RecordLock::take(&record, timeout).unwrap();
}

/// A reset without a message is that of a CPU that has failed.
#[test]
fn a_kernel_works_if_it_panics_for_lack_of_a_root_file_system() {
    let silent = run(shell("exit 0"), TRIAL_TIMEOUT).unwrap();
    assert_eq!(unusable(silent.expect_panic()), "exit code 0");
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/vmlinuz");
    let qemu = std::process::Command::new(PROGRAM)
        .arg("--version")
        .output();
    let kernel = match (File::open(kernel), qemu) {
        (Ok(kernel), Ok(_)) => kernel,
        _ => {
            assert!(env::var_os("CI").is_none(), "needs {PROGRAM} and a kernel");
            eprintln!("SKIPPED: this test needs {PROGRAM} and .ci/guest-files");
            return;
        }
    };
    let trial = trial_command("tcg", true, kernel);
    let exit = run(trial, Duration::from_secs(120)).unwrap();
    exit.expect_panic().unwrap();
}
