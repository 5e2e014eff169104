use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use vmm_shim::{ExitRecord, FILES, PidLookup, PidRecord};

use super::End;

/// What a daemon that is gone leaves of a box, in its home on this machine.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) dir: PathBuf,
    /// Whether the box may go on without the daemon.
    pub(super) outlives: bool,
}

/// How long a box may take to end with its daemon: the daemon finishes its requests, and then gives
/// it a grace period; one that was killed leaves that to the shim.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Remains {
    /// `None` if the box goes on, or nobody knows how it ended.
    pub(super) async fn end(&self) -> Option<End> {
        let shim = PidRecord::read(&self.dir.join(FILES.shim_pid)).ok()??;
        let deadline = Instant::now() + PATIENCE;
        // Its record is the last thing that it writes.
        while runs(&shim) {
            if self.outlives || Instant::now() > deadline {
                return None;
            }
            sleep(LOOK_EVERY).await;
        }
        let record = ExitRecord::read(&self.dir.join(FILES.exit)).ok()??;
        (record.pid == shim.pid).then(|| record.into())
    }
}

fn runs(shim: &PidRecord) -> bool {
    matches!(
        shim.lookup(),
        Ok(PidLookup::Alive(_) | PidLookup::Unverified(_))
    )
}
