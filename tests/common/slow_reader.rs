//! A client that reads the output of a command slowly, while memory is measured.

use std::process;

use tokio::io::AsyncReadExt;
use vmm_protocol::procfs::Stat;
use vmm_runtime::{BoxInfo, Ending, ExecSpec, VmmRuntime};

use super::{pause, stream_bytes};

/// How much memory buffers and the tests that run beside this one may take.
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// How much is read at once while the client is slow, in bytes.
const SIZE_WHILE_SLOW: usize = 1 << 10;

const SIZE: usize = 64 << 10;

/// Fails if the memory of this process and of the shim grows while a command of the box writes much output.
pub async fn assert_memory_is_flat(runtime: &VmmRuntime, bx: &BoxInfo) {
    let resident_kib = || {
        let of = |pid| Stat::of(pid).unwrap().unwrap().rss_pages * 4;
        of(process::id()) + of(bx.pid.unwrap())
    };
    let total = stream_bytes();
    let before = resident_kib();
    let script = format!(
        "dd if=/dev/zero bs={SIZE} count={} 2>/dev/null",
        total / SIZE as u64
    );
    let spec = ExecSpec::new("", ["sh", "-c", &script]);
    let mut execution = runtime.exec(&bx.id, spec).await.unwrap();
    let mut stdout = execution.stdout.take().unwrap();
    let mut buffer = vec![0; SIZE];
    let (mut received, mut peak) = (0, 0);
    loop {
        // At first so slow that all of it could arrive meanwhile.
        let is_slow = received < 100 << 10;
        let size = if is_slow { SIZE_WHILE_SLOW } else { SIZE };
        let length = stdout.read(&mut buffer[..size]).await.unwrap();
        if length == 0 {
            break;
        }
        received += length as u64;
        if is_slow || received % (1 << 20) < length as u64 {
            pause().await;
            peak = peak.max(resident_kib());
        }
    }
    assert_eq!(received, total);
    let growth = peak.saturating_sub(before);
    eprintln!("{} MiB of output, memory grew by {growth} KiB", total >> 20);
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB");
    assert_eq!(execution.wait().await.unwrap(), Ending::Exited { code: 0 });
}
