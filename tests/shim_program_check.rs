//! Opening a VMM runtime checks the shim program, before any box starts.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{RuntimeError, ShimProgramError, VmmRuntime};

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

#[tokio::test]
async fn a_missing_shim_program_is_named() {
    let home = PerTestBoxHome::new();
    let options = home.options().shim_program("/no/such/vmm-shim");
    let error = VmmRuntime::open(options).await.unwrap_err();
    assert!(matches!(
        error,
        RuntimeError::ShimProgram(ShimProgramError::Missing { .. })
    ));
    assert!(error.to_string().contains("/no/such/vmm-shim"), "{error}");
}

#[tokio::test]
async fn a_shim_program_that_is_not_executable_is_named() {
    let home = PerTestBoxHome::new();
    let file = home.path().join("plain");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    for path in [file.as_path(), home.path()] {
        let options = home.options().shim_program(path);
        let error = VmmRuntime::open(options).await.unwrap_err();
        assert!(matches!(
            error,
            RuntimeError::ShimProgram(ShimProgramError::NotExecutable { .. })
        ));
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_rejected_shim_program_leaves_the_home_free() {
    let home = PerTestBoxHome::new();
    VmmRuntime::open(home.options()).await.unwrap_err();
    common::boxes::open_runtime(&home).await;
}
