use nix::libc::SIGKILL;
use serde::{Deserialize, Serialize};

use crate::bounds::{self, truncate_text};

/// How a shim's work ended.
///
/// Texts are cut after 4 KiB when they are read, and codes and signals that no process ends with
/// are refused: a payload can write to the file that an ending is read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// The payload returned this code.
    Exited {
        /// 0 to 255.
        #[serde(deserialize_with = "bounds::exit_code")]
        code: i32,
    },
    /// A signal ended the payload, or the shim before there was one.
    Signaled {
        /// Its number, as in `signal(7)`: 1 to 64.
        #[serde(deserialize_with = "bounds::signal")]
        signal: i32,
    },
    /// The kernel killed the payload, because the memory that it may use was used up.
    ///
    /// So it looks: SIGKILL ended the payload, its shim did not send that, and the kernel has
    /// killed one of the payload's processes for memory. It does not tell which one, so that of a
    /// payload that has survived that, and is later killed from outside, the same is said.
    OutOfMemory,
    /// Code inside the shim panicked.
    Panicked {
        /// What it said.
        #[serde(deserialize_with = "bounds::text")]
        message: String,
        /// `file:line:column`, where known.
        #[serde(default, deserialize_with = "bounds::optional_text")]
        location: Option<String>,
    },
    /// The payload could not be started, or could no longer be followed.
    Failed {
        /// For programs.
        kind: FailureKind,
        /// For people.
        #[serde(deserialize_with = "bounds::text")]
        message: String,
    },
}

/// Why a payload could not be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The spec was missing, torn or malformed.
    Spec,
    /// No engine has the name that the spec gives.
    UnknownEngine,
    /// There is no such program.
    NotFound,
    /// There is one, and it cannot be executed.
    NotExecutable,
    /// A file in the box's directory could not be written.
    Storage,
    /// Another shim lives in the box's directory. Only reported, never on record there.
    InUse,
    /// Anything else that the engine says.
    #[serde(other)]
    Engine,
}

impl Ending {
    /// As a shell would show it: the code, or 128 + signal; 125 to 127 for what could not be run,
    /// as docker does, and 101 for a panic, as Rust does.
    pub fn shell_code(&self) -> i32 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal } => 128 + signal,
            Self::OutOfMemory => 128 + SIGKILL,
            Self::Panicked { .. } => 101,
            Self::Failed { kind, .. } => match kind {
                FailureKind::NotFound => 127,
                FailureKind::NotExecutable => 126,
                _ => 125,
            },
        }
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self {
            Self::Signaled { signal } => Some(*signal),
            Self::OutOfMemory => Some(SIGKILL),
            _ => None,
        }
    }

    /// Whether neither the payload chose to end like this, nor the spec asked for what cannot be
    /// run.
    pub fn is_crash(&self) -> bool {
        match self {
            Self::Exited { .. } => false,
            Self::Signaled { .. } | Self::OutOfMemory | Self::Panicked { .. } => true,
            Self::Failed { kind, .. } => !matches!(
                kind,
                FailureKind::Spec
                    | FailureKind::UnknownEngine
                    | FailureKind::NotFound
                    | FailureKind::NotExecutable
            ),
        }
    }

    /// Cuts what it says to what a reader keeps.
    pub fn bounded(mut self) -> Self {
        match &mut self {
            Self::Panicked { message, location } => {
                truncate_text(message);
                location.iter_mut().for_each(truncate_text);
            }
            Self::Failed { message, .. } => truncate_text(message),
            _ => {}
        }
        self
    }

    /// Returns the ending of a payload that could not be run.
    pub fn failed(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed {
            kind,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_survives_its_wire_form() {
        for ending in [
            Ending::Exited { code: 3 },
            Ending::Signaled { signal: 9 },
            Ending::OutOfMemory,
            Ending::Panicked {
                message: "no".into(),
                location: Some("src/x.rs:1:2".into()),
            },
            Ending::failed(FailureKind::Spec, "torn"),
        ] {
            let text = serde_json::to_string(&ending).unwrap();
            assert_eq!(serde_json::from_str::<Ending>(&text).unwrap(), ending);
        }
    }

    #[test]
    fn who_ends_with_a_code_or_cannot_be_run_has_not_crashed() {
        for ending in [
            Ending::Signaled { signal: 11 },
            Ending::OutOfMemory,
            Ending::failed(FailureKind::Storage, "full"),
        ] {
            assert!(ending.is_crash(), "{ending:?}");
        }
        for ending in [
            Ending::Exited { code: 1 },
            Ending::failed(FailureKind::NotFound, "no such program"),
        ] {
            assert!(!ending.is_crash(), "{ending:?}");
        }
    }

    #[test]
    fn texts_that_are_read_are_cut_between_characters() {
        let panicked = Ending::Panicked {
            message: "\u{20ac}".repeat(400_000),
            location: Some("\u{20ac}".repeat(400_000)),
        };
        let text = serde_json::to_string(&panicked).unwrap();
        let read: Ending = serde_json::from_str(&text).unwrap();
        assert_eq!(read, panicked.bounded());
        let Ending::Panicked { message, .. } = read else {
            panic!("{read:?}");
        };
        assert_eq!(message, "\u{20ac}".repeat((4 << 10) / 3));
    }

    #[test]
    fn what_no_process_ends_with_is_refused() {
        for forged in [
            r#"{"how":"exited","code":256}"#,
            r#"{"how":"exited","code":-1}"#,
            r#"{"how":"signaled","signal":0}"#,
            r#"{"how":"signaled","signal":2147483647}"#,
        ] {
            serde_json::from_str::<Ending>(forged).unwrap_err();
        }
    }

    #[test]
    fn a_kind_of_failure_from_a_newer_shim_is_read_as_the_engines() {
        let newer = r#"{"how":"failed","kind":"moon_phase","message":"full"}"#;
        let ending: Ending = serde_json::from_str(newer).unwrap();
        assert_eq!(ending, Ending::failed(FailureKind::Engine, "full"));
    }
}
