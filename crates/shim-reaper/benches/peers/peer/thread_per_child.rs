use std::thread;

use super::{Peer, Then};
use crate::column::Column;
use crate::system;

/// Enough for a system call, and little enough for thousands.
const STACK: usize = 64 << 10;

/// A thread blocked in `wait` per child: nothing in user space is faster.
pub(crate) struct ThreadPerChild;

impl Peer for ThreadPerChild {
    fn column(&self) -> Column {
        Column::Floor
    }

    fn start(&self, then: Option<Then>) -> u32 {
        let mut child = system::sleeper().spawn().unwrap();
        let pid = child.id();
        let wait = move || {
            let status = child.wait();
            if let Some(then) = then {
                then();
            }
            status.unwrap();
        };
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(wait)
            .unwrap();
        pid
    }
}
