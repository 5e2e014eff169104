use async_process::Command;

use super::{Peer, Then};
use crate::column::Column;
use crate::system;

/// `async-process` with the `Child` dropped; it brings threads of its own.
pub(crate) struct AsyncProcess;

impl Peer for AsyncProcess {
    fn column(&self) -> Column {
        Column::AsyncProcess
    }

    fn start(&self, _: Option<Then>) -> u32 {
        Command::from(system::sleeper()).spawn().unwrap().id()
    }
}
