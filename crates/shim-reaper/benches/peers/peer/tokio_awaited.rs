use tokio::process::Command;

use super::{Peer, Then};
use crate::column::Column;
use crate::site::Site;
use crate::system;

/// `tokio::process` with a task per child that awaits it.
pub(crate) struct TokioAwaited {
    pub(crate) site: Site,
}

impl TokioAwaited {
    pub(crate) fn new() -> Self {
        Self { site: Site::new() }
    }
}

impl Peer for TokioAwaited {
    fn column(&self) -> Column {
        Column::TokioAwaited
    }

    fn start(&self, then: Option<Then>) -> u32 {
        let mut child = self
            .site
            .block_on(async { Command::from(system::sleeper()).spawn().unwrap() });
        let pid = child.id().unwrap();
        self.site.spawn(async move {
            let status = child.wait().await;
            if let Some(then) = then {
                then();
            }
            status.unwrap();
        });
        pid
    }
}
