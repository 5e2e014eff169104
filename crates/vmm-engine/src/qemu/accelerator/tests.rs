use std::cell::Cell;

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn host(inode: u64) -> Host {
    Host {
        boot_id: Some("b".into()),
        qemu: Some((inode, 2, 3)),
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
    let reason = run(aborts, TRIAL_TIMEOUT).unwrap().expect_code(TRIAL_CODE);
    assert_eq!(reason.unwrap_err(), "failed to set MSR (signal 6)");
    let reason = run(shell("exit 1"), TRIAL_TIMEOUT).unwrap().expect_code(0);
    assert_eq!(reason.unwrap_err(), "exit code 1");
}

#[test]
fn an_unusable_kvm_is_tcg_for_auto_and_an_error_for_kvm() {
    let check = || Err("no end within 5s".to_owned());
    let auto = decide(Accelerator::Auto, None, host(1), check).unwrap();
    assert_eq!(auto, Accelerator::Tcg);
    let error = decide(Accelerator::Kvm, None, host(1), check).unwrap_err();
    assert!(matches!(error, EngineError::KvmUnusable { .. }));
    assert!(error.to_string().contains("no end within 5s"), "{error}");
    for requested in [Accelerator::Auto, Accelerator::Kvm] {
        let chosen = decide(requested, None, host(1), || Ok(())).unwrap();
        assert_eq!(chosen, Accelerator::Kvm);
    }
}

#[test]
fn tcg_checks_nothing() {
    let chosen = decide(Accelerator::Tcg, None, host(1), || panic!("checked"));
    assert_eq!(chosen.unwrap(), Accelerator::Tcg);
}

#[test]
fn a_result_is_kept_for_the_host_and_its_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("cache").join(RECORD);
    let checks = Cell::new(0);
    let decide = |requested, host, result: Result<(), String>| {
        decide(requested, Some(record.clone()), host, || {
            checks.set(checks.get() + 1);
            result
        })
    };
    let failure = || Err("no".to_owned());
    for _ in 0..2 {
        let chosen = decide(Accelerator::Auto, host(1), failure()).unwrap();
        assert_eq!((chosen, checks.get()), (Accelerator::Tcg, 1));
    }
    // Another QEMU.
    decide(Accelerator::Auto, host(2), failure()).unwrap();
    assert_eq!(checks.get(), 2);
    // A failure does not count for an explicit request, a success does.
    decide(Accelerator::Kvm, host(2), Ok(())).unwrap();
    assert_eq!(checks.get(), 3);
    let chosen = decide(Accelerator::Kvm, host(2), failure()).unwrap();
    assert_eq!((chosen, checks.get()), (Accelerator::Kvm, 3));
}

#[test]
fn qemu_boots_the_sector_where_it_works() {
    if std::process::Command::new(PROGRAM)
        .arg("--version")
        .output()
        .is_err()
    {
        assert!(env::var_os("CI").is_none(), "this test needs {PROGRAM}");
        eprintln!("SKIPPED: this test needs {PROGRAM}");
        return;
    }
    let trial = trial_command("tcg", true).unwrap();
    let exit = run(trial, Duration::from_secs(120)).unwrap();
    exit.expect_code(TRIAL_CODE).unwrap();
}
