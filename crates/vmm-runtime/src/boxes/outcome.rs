use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, Serialize};
use vmm_protocol::{Ending, ExitRecord, FileError, PidRecord, truncate_text};

use super::BoxStatus;
use crate::StartError;

/// How a run of a box ended; kept in its `box.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) status: BoxStatus,
    #[serde(default)]
    pub(crate) ending: Option<Ending>,
    #[serde(default, deserialize_with = "bounded")]
    pub(crate) error: Option<String>,
    pub(crate) at: Timestamp,
    /// Whether somebody had asked for it.
    #[serde(default)]
    pub(crate) requested: bool,
    /// Whether the shim ended without seeing to what its payload had started.
    #[serde(skip)]
    pub(crate) may_leave_strays: bool,
    /// Whose run it was, so that an outcome is not taken for that of a later one.
    #[serde(default)]
    pub(crate) shim: Option<PidRecord>,
}

impl Outcome {
    /// The exit record tells most, and the kernel's status decides whether it is believed: a
    /// payload can write to the record. Where the kernel cannot tell how the shim ended, the record
    /// is all there is; what the payload has started is then searched for in any case.
    pub(crate) fn of(
        shim: Option<PidRecord>,
        status: Option<ExitStatus>,
        record: Result<Option<ExitRecord>, FileError>,
        stop_requested: bool,
    ) -> Self {
        let (record, unreadable) = match record {
            Ok(record) => (record, None),
            Err(error) => (None, Some(error.to_string())),
        };
        // One of an earlier run says nothing about this one.
        let record =
            record.filter(|record| shim.as_ref().is_none_or(|shim| shim.pid == record.pid));
        let record =
            record.filter(|record| status.is_none_or(|status| record_fits(record, status)));
        let may_leave_strays = match &record {
            Some(record) => status.is_none() || matches!(record.ending, Ending::Panicked { .. }),
            None => true,
        };
        let requested = stop_requested || record.as_ref().is_some_and(|record| record.requested);
        let ending = record
            .map(|record| record.ending)
            .or_else(|| status.and_then(ending_of));
        let status = match &ending {
            Some(Ending::Exited { code: 0 }) => BoxStatus::Stopped,
            Some(Ending::Exited { .. } | Ending::Signaled { .. } | Ending::OutOfMemory) | None
                if requested =>
            {
                BoxStatus::Stopped
            }
            _ => BoxStatus::Failed,
        };
        let error = unreadable.or_else(|| match status {
            BoxStatus::Failed => Some(describe(ending.as_ref())),
            _ => None,
        });
        let error = error.map(truncated);
        Self {
            status,
            ending,
            error,
            at: Timestamp::now(),
            requested,
            may_leave_strays,
            shim,
        }
    }

    /// The same, with a file that could not be read as the reason.
    pub(crate) fn because(mut self, error: &FileError) -> Self {
        self.status = BoxStatus::Failed;
        self.error = Some(truncated(error.to_string()));
        self
    }

    /// A start that came to nothing.
    pub(crate) fn of_start(error: &StartError, shim: Option<PidRecord>) -> Self {
        Self {
            status: BoxStatus::Failed,
            ending: error.ending().cloned(),
            error: Some(truncated(error.to_string())),
            at: Timestamp::now(),
            requested: false,
            may_leave_strays: false,
            shim,
        }
    }
}

fn truncated(mut text: String) -> String {
    truncate_text(&mut text);
    text
}

fn bounded<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(from)?.map(truncated))
}

/// Whether this record can be that of a shim which ended with this status: a shim that records its
/// end exits with the code that the record gives.
pub(crate) fn record_fits(record: &ExitRecord, status: ExitStatus) -> bool {
    status.code() == Some(record.ending.shell_code())
}

pub(crate) fn ending_of(status: ExitStatus) -> Option<Ending> {
    match (status.code(), status.signal()) {
        (Some(code), _) => Some(Ending::Exited { code }),
        (_, Some(signal)) => Some(Ending::Signaled { signal }),
        _ => None,
    }
}

pub(crate) fn describe(ending: Option<&Ending>) -> String {
    match ending {
        None => "the shim is gone, and nobody can tell how it ended".to_owned(),
        Some(Ending::Exited { code }) => format!("ended with code {code}"),
        Some(Ending::Signaled { signal }) => match Signal::try_from(*signal) {
            Ok(signal) => format!("ended by {signal}"),
            Err(_) => format!("ended by signal {signal}"),
        },
        Some(Ending::OutOfMemory) => "killed: the memory it may use was used up".to_owned(),
        Some(Ending::Panicked { message, location }) => match location {
            Some(location) => format!("the shim panicked at {location}: {message}"),
            None => format!("the shim panicked: {message}"),
        },
        Some(Ending::Failed { message, .. }) => message.clone(),
        Some(other) => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(requested: bool, ending: Ending) -> Result<Option<ExitRecord>, FileError> {
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
    fn what_was_asked_for_is_stopped_and_the_rest_has_failed() {
        let term = Ending::Signaled { signal: 15 };
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
            (true, panic, BoxStatus::Failed),
        ] {
            let outcome = Outcome::of(shim(), None, record(requested, ending.clone()), false);
            assert_eq!(outcome.status, expected, "{requested} {ending:?}");
            assert_eq!(outcome.error.is_some(), expected == BoxStatus::Failed);
        }
    }

    #[test]
    fn the_status_speaks_where_there_is_no_record_and_not_for_another_run() {
        let killed = Some(ExitStatus::from_raw(9));
        let outcome = Outcome::of(shim(), killed, Ok(None), false);
        assert_eq!(outcome.ending, Some(Ending::Signaled { signal: 9 }));
        assert_eq!(outcome.status, BoxStatus::Failed);
        let of_another = Ok(Some(ExitRecord {
            pid: 8,
            requested: true,
            ending: Ending::Exited { code: 0 },
        }));
        let outcome = Outcome::of(shim(), killed, of_another, false);
        assert_eq!(outcome.status, BoxStatus::Failed);
    }

    #[test]
    fn a_record_is_believed_only_if_the_status_fits_it() {
        let clean = || record(true, Ending::Exited { code: 0 });
        let term = || record(true, Ending::Signaled { signal: 15 });
        for (status, record, expected) in [
            (9, clean(), Ending::Signaled { signal: 9 }),
            (15, term(), Ending::Signaled { signal: 15 }),
            (3 << 8, clean(), Ending::Exited { code: 3 }),
        ] {
            let outcome = Outcome::of(shim(), Some(ExitStatus::from_raw(status)), record, false);
            assert_eq!(outcome.ending, Some(expected));
            assert_eq!(outcome.status, BoxStatus::Failed);
            assert!(outcome.may_leave_strays && !outcome.requested);
        }
        let outcome = Outcome::of(shim(), Some(ExitStatus::from_raw(143 << 8)), term(), false);
        assert_eq!(outcome.ending, Some(Ending::Signaled { signal: 15 }));
        assert!(outcome.requested && !outcome.may_leave_strays);
        // Nothing but the record tells how it ended.
        let outcome = Outcome::of(shim(), None, clean(), false);
        assert_eq!(outcome.status, BoxStatus::Stopped);
        assert!(outcome.may_leave_strays);
    }

    #[test]
    fn an_unreadable_record_is_named_and_the_status_still_counts() {
        let torn = FileError::new("read", "/b/exit", std::io::ErrorKind::InvalidData.into());
        let outcome = Outcome::of(shim(), Some(ExitStatus::from_raw(3 << 8)), Err(torn), false);
        assert_eq!(outcome.ending, Some(Ending::Exited { code: 3 }));
        assert!(outcome.error.unwrap().contains("/b/exit"));
    }
}
