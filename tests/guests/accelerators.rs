//! Guests on hosts where KVM works, and where it does not.

use std::fs;
use std::path::Path;

use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, GuestEvent, VmmRuntime, with_causes};
use vmm_shim::Accelerator;

use crate::guest::{GuestFiles, checking_options, open_runtime, run, spec};

#[tokio::test]
async fn a_guest_boots_whether_or_not_the_host_has_kvm() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest("poweroff -f");
    guest.accelerator = Accelerator::Auto;
    let ended = run(&runtime, &guest).await;
    let event = GuestEvent::PoweredOff;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    // The next box uses the result.
    assert!(has_record(&home.path().join("cache")));
}

/// Returns whether a cache directory has the result of a check of KVM.
fn has_record(cache: &Path) -> bool {
    let files = fs::read_dir(cache).unwrap();
    let mut names = files.map(|file| file.unwrap().file_name());
    names.any(|name| name.to_string_lossy().ends_with(".json"))
}

#[tokio::test]
async fn a_guest_that_demands_kvm_runs_or_its_start_fails_with_the_reason() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let shared = home.path().join("shared-cache");
    let runtime = VmmRuntime::open(checking_options(&home).cache_dir(&shared));
    let runtime = runtime.await.unwrap();
    let mut guest = files.guest("poweroff -f");
    guest.accelerator = Accelerator::Kvm;
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let started = runtime.start(&bx.id).await;
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert!(has_record(&shared));
    if let Err(error) = started {
        let message = with_causes(&error);
        assert!(message.contains("KVM cannot be used: "), "{message}");
        assert_eq!(ended.status, BoxStatus::Failed, "{ended:?}");
        assert_eq!((ended.pid, ended.payload_pid), (None, None));
    } else {
        let event = GuestEvent::PoweredOff;
        assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    }
}
