use std::process::ExitStatus;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use vmm_protocol::{
    Ending, ExitRecord, FileError, GuestEvent, PidRecord, truncate_text, with_causes,
};

use super::BoxStatus;
use crate::StartError;
use crate::shim::{describe_ending, ending_of_status, record_matches};

/// The outcome of a run of a box, saved in its `box.json`. An [`Ending`] says how the payload
/// ended; an outcome adds what that means for the box.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) status: BoxStatus,
    #[serde(default)]
    pub(crate) ending: Option<Ending>,
    #[serde(default, deserialize_with = "deserialize_truncated")]
    pub(crate) error: Option<String>,
    /// The last lines that the payload of a failed start printed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "deserialize_truncated"
    )]
    pub(crate) output: Option<String>,
    pub(crate) at: Timestamp,
    /// Whether a stop was requested.
    #[serde(default)]
    pub(crate) requested: bool,
    /// Whether the shim ended without killing all descendants of its payload.
    #[serde(skip)]
    pub(crate) may_leave_orphans: bool,
    /// The shim of the run, so that a later run is not mistaken for this one.
    #[serde(default)]
    pub(crate) shim: Option<PidRecord>,
}

impl Outcome {
    /// Determines the outcome of a run from the exit status and the exit record of its shim. A
    /// payload can forge the record, so the record counts only if it matches the status. If the
    /// kernel reports no status, the record is used as it is, and the cleanup is done in every
    /// case.
    pub(crate) fn of_exit(
        shim: Option<PidRecord>,
        status: Option<ExitStatus>,
        record: Result<Option<ExitRecord>, &FileError>,
        stop_requested: bool,
    ) -> Self {
        let (record, unreadable) = match record {
            Ok(record) => (record, None),
            Err(error) => (None, Some(with_causes(error))),
        };
        // A record of an earlier run does not count.
        let record =
            record.filter(|record| shim.as_ref().is_none_or(|shim| shim.pid == record.pid));
        let record =
            record.filter(|record| status.is_none_or(|status| record_matches(record, status)));
        let may_leave_orphans = match &record {
            Some(record) => status.is_none() || matches!(record.ending, Ending::Panicked { .. }),
            None => true,
        };
        let requested = stop_requested || record.as_ref().is_some_and(|record| record.requested);
        let ending = record
            .map(|record| record.ending)
            .or_else(|| status.and_then(ending_of_status));
        let status = match &ending {
            Some(
                Ending::Exited { code: 0 }
                | Ending::Guest {
                    event: GuestEvent::PoweredOff,
                },
            ) => BoxStatus::Stopped,
            Some(
                Ending::Exited { .. }
                | Ending::Signaled { .. }
                | Ending::OutOfMemory
                | Ending::Guest {
                    event: GuestEvent::Reset,
                },
            )
            | None
                if requested =>
            {
                BoxStatus::Stopped
            }
            _ => BoxStatus::Failed,
        };
        let error = unreadable.or_else(|| match status {
            BoxStatus::Failed => Some(describe_ending(ending.as_ref())),
            _ => None,
        });
        let error = error.map(truncated);
        Self {
            status,
            ending,
            error,
            output: None,
            at: Timestamp::now(),
            requested,
            may_leave_orphans,
            shim,
        }
    }

    /// Turns the outcome into a failure whose reason is an unreadable file.
    pub(crate) fn with_error(mut self, error: &FileError) -> Self {
        self.status = BoxStatus::Failed;
        self.error = Some(truncated(with_causes(error)));
        self
    }

    /// Creates the outcome of a failed start.
    pub(crate) fn of_failed_start(
        error: &StartError,
        output: Option<String>,
        shim: Option<PidRecord>,
    ) -> Self {
        Self {
            status: BoxStatus::Failed,
            ending: error.ending().cloned(),
            error: Some(truncated(with_causes(error))),
            output,
            at: Timestamp::now(),
            requested: false,
            may_leave_orphans: false,
            shim,
        }
    }
}

fn truncated(mut text: String) -> String {
    truncate_text(&mut text);
    text
}

/// Deserializes a text and truncates it: the file may have been changed by a payload.
fn deserialize_truncated<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(from)?.map(truncated))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn record(requested: bool, ending: Ending) -> Result<Option<ExitRecord>, &'static FileError> {
        Ok(Some(ExitRecord {
            pid: 7,
            requested,
            ending,
        }))
    }

    fn shim() -> Option<PidRecord> {
        Some(PidRecord {
            pid: 7,
            identity: None,
        })
    }

    #[test]
    fn requested_endings_are_stopped_and_others_failed() {
        let term = Ending::Signaled { signal: 15 };
        let guest = |event| Ending::Guest { event };
        let panic = Ending::Panicked {
            message: "no".into(),
            location: None,
        };
        for (requested, ending, expected) in [
            (false, Ending::Exited { code: 0 }, BoxStatus::Stopped),
            (false, Ending::Exited { code: 1 }, BoxStatus::Failed),
            (true, Ending::Exited { code: 1 }, BoxStatus::Stopped),
            (false, term.clone(), BoxStatus::Failed),
            (true, term, BoxStatus::Stopped),
            (false, Ending::OutOfMemory, BoxStatus::Failed),
            (false, guest(GuestEvent::PoweredOff), BoxStatus::Stopped),
            (false, guest(GuestEvent::Reset), BoxStatus::Failed),
            (true, guest(GuestEvent::Reset), BoxStatus::Stopped),
            (true, guest(GuestEvent::Panicked), BoxStatus::Failed),
            (true, panic, BoxStatus::Failed),
        ] {
            let outcome = Outcome::of_exit(shim(), None, record(requested, ending.clone()), false);
            assert_eq!(outcome.status, expected, "{requested} {ending:?}");
            assert_eq!(outcome.error.is_some(), expected == BoxStatus::Failed);
        }
    }

    #[test]
    fn without_a_record_of_this_run_the_exit_status_counts() {
        let killed = Some(ExitStatus::from_raw(9));
        let outcome = Outcome::of_exit(shim(), killed, Ok(None), false);
        assert_eq!(outcome.ending, Some(Ending::Signaled { signal: 9 }));
        assert_eq!(outcome.status, BoxStatus::Failed);
        let of_another = Ok(Some(ExitRecord {
            pid: 8,
            requested: true,
            ending: Ending::Exited { code: 0 },
        }));
        let outcome = Outcome::of_exit(shim(), killed, of_another, false);
        assert_eq!(outcome.status, BoxStatus::Failed);
    }

    #[test]
    fn a_record_counts_only_if_it_matches_the_exit_status() {
        let clean = || record(true, Ending::Exited { code: 0 });
        let term = || record(true, Ending::Signaled { signal: 15 });
        for (status, record, expected) in [
            (9, clean(), Ending::Signaled { signal: 9 }),
            (15, term(), Ending::Signaled { signal: 15 }),
            (3 << 8, clean(), Ending::Exited { code: 3 }),
        ] {
            let outcome =
                Outcome::of_exit(shim(), Some(ExitStatus::from_raw(status)), record, false);
            assert_eq!(outcome.ending, Some(expected));
            assert_eq!(outcome.status, BoxStatus::Failed);
            assert!(outcome.may_leave_orphans && !outcome.requested);
        }
        let outcome = Outcome::of_exit(shim(), Some(ExitStatus::from_raw(143 << 8)), term(), false);
        assert_eq!(outcome.ending, Some(Ending::Signaled { signal: 15 }));
        assert!(outcome.requested && !outcome.may_leave_orphans);
        // Only the record is available.
        let outcome = Outcome::of_exit(shim(), None, clean(), false);
        assert_eq!(outcome.status, BoxStatus::Stopped);
        assert!(outcome.may_leave_orphans);
    }

    #[test]
    fn an_unreadable_record_is_reported_and_the_exit_status_counts() {
        let torn = FileError::new("read", "/b/exit", std::io::Error::other("torn"));
        let outcome = Outcome::of_exit(
            shim(),
            Some(ExitStatus::from_raw(3 << 8)),
            Err(&torn),
            false,
        );
        assert_eq!(outcome.ending, Some(Ending::Exited { code: 3 }));
        assert_eq!(outcome.error.unwrap(), "cannot read /b/exit: torn");
    }
}
