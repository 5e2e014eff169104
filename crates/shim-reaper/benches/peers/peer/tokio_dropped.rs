use std::time::Duration;

use tokio::process::Command;

use super::{Peer, Then};
use crate::column::Column;
use crate::site::Site;
use crate::system;

/// How often a busy runtime has something to do.
const TICK: Duration = Duration::from_millis(10);

/// `tokio::process` with the `Child` dropped.
///
/// The first one that tokio notices makes it handle SIGCHLD for the rest of the process's life,
/// which costs every other peer something at every exit: to be measured after all others.
pub(crate) struct TokioDropped {
    site: Site,
    busy: bool,
}

impl TokioDropped {
    pub(crate) fn idle() -> Self {
        Self {
            site: Site::new(),
            busy: false,
        }
    }

    pub(crate) fn busy() -> Self {
        let site = Site::new();
        site.spawn(async {
            loop {
                tokio::time::sleep(TICK).await;
            }
        });
        Self { site, busy: true }
    }
}

impl Peer for TokioDropped {
    fn column(&self) -> Column {
        if self.busy {
            Column::TokioDroppedBusy
        } else {
            Column::TokioDroppedIdle
        }
    }

    fn start(&self, _: Option<Then>) -> u32 {
        self.site.block_on(async {
            let child = Command::from(system::sleeper()).spawn().unwrap();
            child.id().unwrap()
        })
    }
}
