//! The file of each event of a queue.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::event::Envelope;
use vmm_protocol::write_file_unsynced;

/// Returns whether the queue in a directory has an event for which this holds, also while another process has the
/// queue open.
///
/// # Errors
///
/// If the directory or an event cannot be read.
pub(crate) fn has_event(dir: &Path, holds: impl Fn(&Envelope) -> bool) -> io::Result<bool> {
    for number in event_numbers(dir)? {
        if read_event(dir, number)?.is_some_and(|envelope| holds(&envelope)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the numbers of the events in a directory, in their order.
pub(super) fn event_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = Vec::new();
    for entry in fs::read_dir(dir)? {
        // A temporary file is an event that was not published.
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads an event. Returns `None` if its file does not exist, or is damaged.
pub(super) fn read_event(dir: &Path, number: u64) -> io::Result<Option<Envelope>> {
    match fs::read(event_path(dir, number)) {
        Ok(bytes) => Ok(Envelope::parse_from_bytes(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn write_event(dir: &Path, number: u64, envelope: &Envelope) -> io::Result<()> {
    let bytes = envelope.write_to_bytes()?;
    write_file_unsynced(&event_path(dir, number), &bytes).map_err(io::Error::other)
}

pub(super) fn event_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}"))
}
