use std::fs::File;

use nix::unistd::{self, Pid};

/// Moves the foreground of the controlling terminal from one process group to another. Does nothing if
/// there is no terminal, or if another group is in the foreground.
///
/// The caller has blocked SIGTTOU, which stops a process that does this from the background.
pub(super) fn move_foreground(from: Pid, to: Pid) {
    if let Some(terminal) = open() {
        if unistd::tcgetpgrp(&terminal) == Ok(from) {
            let _ = unistd::tcsetpgrp(&terminal, to);
        }
    }
}

pub(super) fn exists() -> bool {
    open().is_some()
}

fn open() -> Option<File> {
    File::open("/dev/tty").ok()
}
