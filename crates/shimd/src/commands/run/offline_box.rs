use std::time::Duration;

use tokio::time::{Instant, sleep};
use vmm_rest::wire::BoxResponse;
use vmm_shim::{BoxDir, ExitRecord, PidLookup, PidRecord};

/// A box whose daemon is gone, as its files on this machine show it.
#[derive(Debug)]
pub(super) struct OfflineBox {
    pub(super) dir: BoxDir,
    pub(super) outlives_daemon: bool,
}

/// How a box ended, as far as `run` reports it.
#[derive(Debug)]
pub(super) struct BoxExit {
    /// The exit code, or 128 + the number of the signal.
    pub(super) code: Option<i32>,
    /// Why the box failed.
    pub(super) error: Option<String>,
}

/// How long a box may take to end after its daemon: the daemon finishes its requests before it
/// stops the boxes, and the shim of a killed daemon waits for the grace period.
const EXIT_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

impl OfflineBox {
    /// Waits until the shim ends. Returns `None` if the box outlives the daemon, if it does not end
    /// in time, or if it has no exit record.
    pub(super) async fn wait(&self) -> Option<BoxExit> {
        let shim = self.dir.shim_record().ok()??;
        let deadline = Instant::now() + EXIT_TIMEOUT;
        // The shim writes the exit record last.
        while is_running(&shim) {
            if self.outlives_daemon || Instant::now() > deadline {
                return None;
            }
            sleep(POLL_INTERVAL).await;
        }
        let record = self.dir.exit_record().ok()??;
        (record.pid == shim.pid).then(|| record.into())
    }
}

fn is_running(shim: &PidRecord) -> bool {
    matches!(
        shim.lookup(),
        Ok(PidLookup::Alive(_) | PidLookup::Unverified(_))
    )
}

impl From<BoxResponse> for BoxExit {
    fn from(bx: BoxResponse) -> Self {
        Self {
            code: bx.exit_code,
            error: bx.error,
        }
    }
}

impl From<ExitRecord> for BoxExit {
    fn from(record: ExitRecord) -> Self {
        Self {
            code: Some(record.ending.shell_code()),
            error: None,
        }
    }
}
