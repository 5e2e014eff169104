//! What the exit status and the exit record of a shim show about its payload.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use vmm_protocol::{Ending, ExitRecord, GuestEvent};

/// Returns whether this record can be from a shim that ended with this status: a shim that writes
/// an exit record exits with the code in it.
pub(crate) fn record_matches(record: &ExitRecord, status: ExitStatus) -> bool {
    status.code() == Some(record.ending.shell_code())
}

/// Returns the ending that an exit status shows.
pub(crate) fn ending_of_status(status: ExitStatus) -> Option<Ending> {
    match (status.code(), status.signal()) {
        (Some(code), _) => Some(Ending::Exited { code }),
        (_, Some(signal)) => Some(Ending::Signaled { signal }),
        _ => None,
    }
}

/// Where the kernel of a guest has printed the cause.
const SEE_CONSOLE: &str = "see console.log in the box directory";

/// Describes an ending for a person.
pub(crate) fn describe_ending(ending: Option<&Ending>) -> String {
    match ending {
        None => "the shim is gone; its exit status is unknown".to_owned(),
        Some(Ending::Exited { code }) => format!("exited with code {code}"),
        Some(Ending::Signaled { signal }) => match Signal::try_from(*signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        Some(Ending::OutOfMemory) => "killed because it exceeded its memory limit".to_owned(),
        Some(Ending::Guest { event }) => match event {
            GuestEvent::PoweredOff => "the guest powered off".to_owned(),
            GuestEvent::Reset => format!("the guest reset its machine; {SEE_CONSOLE}"),
            GuestEvent::Panicked => format!("the kernel of the guest panicked; {SEE_CONSOLE}"),
            other => format!("the guest ended its machine: {other:?}"),
        },
        Some(Ending::Helper { name, exit }) => format!(
            "{name} ended while the payload needed it ({}); see helpers.log in the box directory",
            describe_ending(Some(exit))
        ),
        Some(Ending::Panicked { message, location }) => match location {
            Some(location) => format!("the shim panicked at {location}: {message}"),
            None => format!("the shim panicked: {message}"),
        },
        Some(Ending::EndedEarly { exit }) => format!(
            "the payload ended before it was ready: {}",
            describe_ending(Some(exit))
        ),
        Some(Ending::Failed { message, .. }) => message.clone(),
        Some(other) => format!("{other:?}"),
    }
}
