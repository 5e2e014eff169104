//! How long guests took to boot.

use vmm_runtime::Removal;
use vmm_runtime::testing::PerTestBoxHome;

use crate::guest::{GuestFiles, open_runtime, spec};

#[tokio::test]
async fn the_metrics_have_the_phases_of_the_boot_of_a_guest() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(spec(&files.guest_with_agent())).await;
    let bx = runtime.start(&bx.unwrap().id).await.unwrap();
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.box_starts.count(), 1);
    let boots = metrics.guest_boots;
    for (phase, durations) in [
        ("vmm", boots.vmm),
        ("kernel", boots.kernel),
        ("agent", boots.agent),
    ] {
        assert_eq!(durations.count(), 1, "{phase}");
        assert!(!durations.sum.is_zero(), "{phase}");
    }
    let sum = boots.vmm.sum + boots.kernel.sum + boots.agent.sum;
    assert!(sum <= metrics.box_starts.sum, "{metrics:?}");
    let of_box = bx.boot_times.unwrap();
    let kernel = std::time::Duration::from_millis(of_box.kernel_ms);
    assert_eq!(boots.kernel.sum, kernel, "{of_box:?}");
    let start = u128::from(bx.start_ms.unwrap());
    assert_eq!(start, metrics.box_starts.sum.as_millis());
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}
