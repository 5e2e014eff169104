use std::cell::Cell;

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

/// Returns a subject with a QEMU and a kernel of these inodes.
fn subject(qemu: u64, kernel: u64) -> Subject {
    let version = |inode| FileVersion {
        inode,
        size: 2,
        changed: 3,
    };
    Subject {
        boot_id: Some("b".into()),
        qemu: Some(version(qemu)),
        kernel: Some(version(kernel)),
    }
}

#[test]
fn a_process_that_hangs_is_killed_after_its_timeout() {
    let begun = Instant::now();
    let reason = run(shell("exec sleep 1000"), Duration::from_millis(100)).unwrap_err();
    assert!(reason.contains("no end within 100ms"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(100));
}

#[test]
fn a_process_that_aborts_is_a_failure_with_what_it_printed() {
    let aborts = shell("echo 'failed to set MSR' >&2; kill -ABRT $$");
    let reason = run(aborts, TRIAL_TIMEOUT).unwrap().expect_panic();
    assert_eq!(reason.unwrap_err(), "failed to set MSR (signal 6)");
    let reason = run(shell("exit 1"), TRIAL_TIMEOUT).unwrap().expect_code(0);
    assert_eq!(reason.unwrap_err(), "exit code 1");
}

#[test]
fn an_unusable_kvm_is_tcg_for_auto_and_an_error_for_kvm() {
    let check = || Err("no end within 5s".to_owned());
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
fn tcg_checks_nothing() {
    let chosen = decide(Accelerator::Tcg, None, subject(1, 1), || panic!("checked"));
    assert_eq!(chosen.unwrap(), Accelerator::Tcg);
}

#[test]
fn a_result_is_kept_for_the_host_its_qemu_and_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("cache").join("kvm-1.json");
    let checks = Cell::new(0);
    let decide = |requested, subject, result: Result<(), String>| {
        decide(requested, Some(record.clone()), subject, || {
            checks.set(checks.get() + 1);
            result
        })
    };
    let failure = || Err("no".to_owned());
    for _ in 0..2 {
        let chosen = decide(Accelerator::Auto, subject(1, 1), failure()).unwrap();
        assert_eq!((chosen, checks.get()), (Accelerator::Tcg, 1));
    }
    // Another QEMU, and another kernel.
    decide(Accelerator::Auto, subject(2, 1), failure()).unwrap();
    assert_eq!(checks.get(), 2);
    decide(Accelerator::Auto, subject(2, 2), failure()).unwrap();
    assert_eq!(checks.get(), 3);
    // A failure does not count for an explicit request, a success does.
    decide(Accelerator::Kvm, subject(2, 2), Ok(())).unwrap();
    assert_eq!(checks.get(), 4);
    let chosen = decide(Accelerator::Kvm, subject(2, 2), failure()).unwrap();
    assert_eq!((chosen, checks.get()), (Accelerator::Kvm, 4));
}

/// A reset without a message is that of a CPU that has failed.
#[test]
fn a_kernel_works_if_it_panics_for_lack_of_a_root_file_system() {
    let silent = run(shell("exit 0"), TRIAL_TIMEOUT).unwrap();
    silent.expect_panic().unwrap_err();
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
