//! Resets signals that the parent process has ignored.

use std::io;
use std::sync::Arc;

use nix::libc::c_int;
use signal_hook::consts::FORBIDDEN;
use vmm_protocol::procfs;

/// Installs a handler for each of these signals that this process has inherited as ignored.
///
/// An ignored signal stays ignored across `execve`, while a handled one is reset to its default,
/// `signal(7)`. A handler achieves the reset without unsafe code. Signals that were ignored before
/// the call remain lost.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn stop_ignoring(signals: impl IntoIterator<Item = c_int>) -> io::Result<()> {
    let ignored = procfs::ignored_signals()?;
    for signal in signals {
        if ignored >> (signal - 1) & 1 == 1 && !FORBIDDEN.contains(&signal) {
            match signal_hook::flag::register(signal, Arc::default()) {
                // The C library reserves some signals for itself, signal(7).
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                result => drop(result?),
            }
        }
    }
    Ok(())
}
