//! Resets the signals that a parent process has ignored.

use std::fs;
use std::io;
use std::sync::Arc;

use nix::libc::c_int;
use signal_hook::consts::FORBIDDEN;

/// Catches those of these signals that whoever started this process had it ignore.
///
/// What is ignored stays so across `execve`, and what is caught becomes the default, `signal(7)`;
/// a handler is what can be had without unsafe code. A signal that was lost before is lost still.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn stop_ignoring(signals: impl IntoIterator<Item = c_int>) -> io::Result<()> {
    let ignored = ignored()?;
    for signal in signals {
        if ignored >> (signal - 1) & 1 == 1 && !FORBIDDEN.contains(&signal) {
            match signal_hook::flag::register(signal, Arc::default()) {
                // The C library keeps some for itself, signal(7).
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                registered => drop(registered?),
            }
        }
    }
    Ok(())
}

/// A bit for each signal, from 1 on: `SigIgn` in `/proc/self/status`, `proc_pid_status(5)`.
fn ignored() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status does not tell what is ignored"))
}
