//! The shim program is checked before any box starts.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::boxes::{shim_program, sleeping, start_box};
use common::own_process::in_own_process;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{RuntimeError, ShimProgram, ShimProgramError, VmmRuntime, with_causes};

#[tokio::test]
async fn a_program_that_does_not_call_run_if_shim_cannot_be_its_own_shim() {
    let home = PerTestBoxHome::new();
    let error = VmmRuntime::open(home.options()).await.unwrap_err();
    assert!(matches!(
        error,
        RuntimeError::ShimProgram(ShimProgramError::NotAShimProgram)
    ));
    assert!(error.to_string().contains("run_if_shim"), "{error}");
}

#[test]
fn a_missing_shim_program_is_named() {
    let error = ShimProgram::at("/no/such/vmm-shim").unwrap_err();
    assert!(matches!(error, ShimProgramError::Missing { .. }));
    assert!(error.to_string().contains("/no/such/vmm-shim"), "{error}");
}

#[test]
fn a_shim_program_that_is_not_executable_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    for path in [file.as_path(), dir.path()] {
        let error = ShimProgram::at(path).unwrap_err();
        assert!(matches!(error, ShimProgramError::NotExecutable { .. }));
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_shim_program_that_the_kernel_does_not_execute_is_named() {
    let home = PerTestBoxHome::new();
    let file = home.path().join("vmm-shim");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let options = home.options().shim_program(ShimProgram::at(&file).unwrap());
    let runtime = VmmRuntime::open(options).await.unwrap();
    let id = runtime.create(sleeping()).await.unwrap().id;
    let error = with_causes(&runtime.start(&id).await.unwrap_err());
    assert!(error.contains(&format!("cannot spawn {file:?}")), "{error}");
    assert!(!error.contains("/proc/"), "{error}");
}

#[test]
fn a_missing_procfs_is_named() {
    in_own_process("a_missing_procfs_is_named", || {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let unmounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
            .and_then(|()| umount2("/proc", MntFlags::MNT_DETACH));
        if let Err(error) = unmounted {
            common::skip(format_args!("this test needs permission to mount: {error}"));
            return;
        }
        let error = ShimProgram::at("/bin/true").unwrap_err();
        assert!(
            matches!(error, ShimProgramError::NoProcfs { .. }),
            "{error:?}"
        );
    });
}

#[tokio::test]
async fn a_rejected_shim_program_leaves_the_home_free() {
    let home = PerTestBoxHome::new();
    VmmRuntime::open(home.options()).await.unwrap_err();
    common::boxes::open_runtime(&home).await;
}

#[tokio::test]
async fn a_replaced_or_deleted_shim_program_does_not_affect_an_open_runtime() {
    let home = PerTestBoxHome::new();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vmm-shim");
    fs::copy(shim_program(), &program).unwrap();
    let opened = ShimProgram::at(&program).unwrap();
    let options = home.options().shim_program(opened);
    let runtime = VmmRuntime::open(options).await.unwrap();

    // As a package manager does.
    let upgraded = dir.path().join("vmm-shim.new");
    fs::copy("/bin/false", &upgraded).unwrap();
    fs::rename(&upgraded, &program).unwrap();
    let first = start_box(&runtime, sleeping()).await;
    fs::remove_file(&program).unwrap();
    let second = start_box(&runtime, sleeping()).await;
    for started in [first, second] {
        let name = fs::read_to_string(format!("/proc/{}/comm", started.pid.unwrap()));
        assert_eq!(name.unwrap(), "vmm-shim\n");
    }
    runtime.shutdown(common::DEADLINE).await;
}
