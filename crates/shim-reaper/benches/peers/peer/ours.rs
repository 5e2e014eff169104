use shim_reaper::ShimReaper;

use super::{Peer, Then};
use crate::column::Column;
use crate::site::Site;
use crate::system;

/// This crate.
pub(crate) struct Ours {
    pub(crate) reaper: ShimReaper,
    pub(crate) site: Site,
}

impl Ours {
    pub(crate) fn new() -> Self {
        let site = Site::new();
        let reaper = site.block_on(async { ShimReaper::start() });
        Self { reaper, site }
    }
}

impl Peer for Ours {
    fn column(&self) -> Column {
        Column::Ours
    }

    fn start(&self, then: Option<Then>) -> u32 {
        let handle = self.reaper.spawn(system::sleeper());
        let handle = self.site.block_on(handle).unwrap();
        let pid = handle.pid();
        if let Some(then) = then {
            self.site.spawn(async move {
                let exit = handle.await;
                then();
                exit.unwrap();
            });
        }
        pid
    }
}
