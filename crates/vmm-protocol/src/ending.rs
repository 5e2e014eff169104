use nix::libc::SIGKILL;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{FailureKind, bounds};

/// How a run of a box ended, as reported by its shim.
///
/// A payload can write to the file from which an ending is read. Deserialization therefore
/// truncates messages to 4 KiB, and rejects exit codes and signals that no process can end with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// The payload exited.
    Exited {
        /// The exit code, 0 to 255.
        #[serde(deserialize_with = "bounds::deserialize_exit_code")]
        code: i32,
    },
    /// A signal ended the payload, or the shim before it had started one.
    Signaled {
        /// The signal number, 1 to 64, as in `signal(7)`.
        #[serde(deserialize_with = "bounds::deserialize_signal")]
        signal: i32,
    },
    /// The kernel killed the payload because its memory limit was reached.
    ///
    /// The shim infers this: SIGKILL ended the payload, the shim did not send it, and the kernel
    /// has killed a process of the payload for lack of memory. The kernel does not report which
    /// process it was. A payload that survives the loss of one process, and that another process
    /// kills later, is therefore reported as out of memory, too.
    OutOfMemory,
    /// The guest of a virtual machine ended it.
    Guest {
        /// What the guest did.
        event: GuestEvent,
    },
    /// A helper process ended while the payload still ran, and the shim killed the payload; or a signal ended a
    /// helper process, and the payload failed at the same time.
    Helper {
        /// What the helper is for, such as `virtiofsd for the share data`.
        #[serde(deserialize_with = "bounds::deserialize_text")]
        name: String,
        /// How the helper ended: `Exited` or `Signaled`.
        #[serde(deserialize_with = "deserialize_process_exit")]
        exit: Box<Self>,
    },
    /// Code inside the shim panicked.
    Panicked {
        /// The panic message.
        #[serde(deserialize_with = "bounds::deserialize_text")]
        message: String,
        /// The place, as `file:line:column`, if known.
        #[serde(default, deserialize_with = "bounds::deserialize_optional_text")]
        location: Option<String>,
    },
    /// The payload ended before it was ready: the start failed.
    EndedEarly {
        /// How the payload ended.
        #[serde(deserialize_with = "deserialize_exit")]
        exit: Box<Self>,
    },
    /// The payload could not be started, or the shim could no longer wait for it.
    Failed {
        /// The kind of failure, for programs.
        kind: FailureKind,
        /// The cause, for people.
        #[serde(deserialize_with = "bounds::deserialize_text")]
        message: String,
    },
}

/// Deserializes how a payload ended. It ends once.
fn deserialize_exit<'de, D: Deserializer<'de>>(from: D) -> Result<Box<Ending>, D::Error> {
    match Ending::deserialize(from)? {
        Ending::EndedEarly { .. } => Err(de::Error::custom("an early end within another one")),
        exit => Ok(Box::new(exit)),
    }
}

/// Deserializes how a single process ended.
fn deserialize_process_exit<'de, D: Deserializer<'de>>(from: D) -> Result<Box<Ending>, D::Error> {
    match Ending::deserialize(from)? {
        exit @ (Ending::Exited { .. } | Ending::Signaled { .. }) => Ok(Box::new(exit)),
        _ => Err(de::Error::custom("a process exits, or a signal ends it")),
    }
}

/// How a guest ended its virtual machine, as the VMM reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuestEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset its machine: a reboot, a triple fault, or a kernel panic that it did not
    /// report.
    Reset,
    /// The kernel of the guest panicked.
    Panicked,
}

impl Ending {
    /// Returns whether a helper process ended first, also before the payload was ready.
    pub fn is_of_helper(&self) -> bool {
        match self {
            Self::Helper { .. } => true,
            Self::EndedEarly { exit } => exit.is_of_helper(),
            _ => false,
        }
    }

    /// Returns the ending as a shell exit code.
    ///
    /// That is the code of the payload, or 128 plus the signal number. As with docker, 125 to 127
    /// mean that the payload could not be run, which includes the loss of a helper. As in Rust, 101
    /// means a panic. A guest that powered off has 0, one that reset or panicked has 1. A failed start
    /// never has the code 0: a payload that exited with it before it was ready has 125.
    pub fn shell_code(&self) -> i32 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal } => 128 + signal,
            Self::OutOfMemory => 128 + SIGKILL,
            Self::Guest { event } => match event {
                GuestEvent::PoweredOff => 0,
                GuestEvent::Reset | GuestEvent::Panicked => 1,
            },
            Self::Panicked { .. } => 101,
            Self::Helper { .. } => 125,
            Self::EndedEarly { exit } => match exit.shell_code() {
                0 => 125,
                code => code,
            },
            Self::Failed { kind, .. } => kind.shell_code(),
        }
    }

    /// Returns the signal that ended the payload, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self {
            Self::Signaled { signal } => Some(*signal),
            Self::OutOfMemory => Some(SIGKILL),
            Self::EndedEarly { exit } => exit.signal(),
            _ => None,
        }
    }

    /// Returns true unless the payload chose to exit, or its spec could not be run.
    pub fn is_crash(&self) -> bool {
        match self {
            Self::Exited { .. } => false,
            Self::Guest { event } => *event != GuestEvent::PoweredOff,
            Self::EndedEarly { exit } => exit.is_crash(),
            Self::Signaled { .. }
            | Self::OutOfMemory
            | Self::Helper { .. }
            | Self::Panicked { .. } => true,
            Self::Failed { kind, .. } => !matches!(
                kind,
                FailureKind::Spec
                    | FailureKind::UnknownEngine
                    | FailureKind::NotFound
                    | FailureKind::NotExecutable
            ),
        }
    }

    /// Truncates the messages to the length that a reader keeps.
    #[must_use]
    pub fn truncated(self) -> Self {
        self.truncated_to(bounds::MAX_TEXT_BYTES)
    }

    /// Truncates each text to at most `bytes`, at a character boundary.
    #[must_use]
    pub fn truncated_to(mut self, bytes: usize) -> Self {
        let truncate = |text: &mut String| text.truncate(text.floor_char_boundary(bytes));
        match &mut self {
            Self::Panicked { message, location } => {
                truncate(message);
                location.iter_mut().for_each(truncate);
            }
            Self::Failed { message, .. } | Self::Helper { name: message, .. } => {
                truncate(message);
            }
            Self::EndedEarly { exit } => **exit = exit.as_ref().clone().truncated_to(bytes),
            _ => {}
        }
        self
    }

    /// Creates the ending of a payload that ended like this before it was ready.
    pub fn ended_early(exit: impl Into<Self>) -> Self {
        Self::EndedEarly {
            exit: Box::new(exit.into()),
        }
    }

    /// Creates the ending of a payload that could not be run.
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
    fn an_ending_survives_serialization() {
        for ending in [
            Ending::Exited { code: 3 },
            Ending::Signaled { signal: 9 },
            Ending::OutOfMemory,
            Ending::Guest {
                event: GuestEvent::PoweredOff,
            },
            Ending::Panicked {
                message: "no".into(),
                location: Some("src/x.rs:1:2".into()),
            },
            Ending::Helper {
                name: "a server".into(),
                exit: Box::new(Ending::Exited { code: 0 }),
            },
            Ending::failed(FailureKind::Spec, "torn"),
            Ending::ended_early(Ending::Signaled { signal: 9 }),
        ] {
            let text = serde_json::to_string(&ending).unwrap();
            assert_eq!(serde_json::from_str::<Ending>(&text).unwrap(), ending);
        }
    }

    #[test]
    fn an_exit_code_or_an_unrunnable_spec_is_not_a_crash() {
        for ending in [
            Ending::Signaled { signal: 11 },
            Ending::OutOfMemory,
            Ending::Helper {
                name: "a server".into(),
                exit: Box::new(Ending::Exited { code: 0 }),
            },
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
    fn a_payload_that_ended_early_has_its_own_code_and_never_0() {
        for (exit, code, is_crash) in [
            (Ending::Exited { code: 3 }, 3, false),
            (Ending::Exited { code: 0 }, 125, false),
            (Ending::Signaled { signal: 9 }, 137, true),
        ] {
            let signal = exit.signal();
            let ending = Ending::ended_early(exit);
            assert_eq!((ending.shell_code(), ending.signal()), (code, signal));
            assert_eq!(ending.is_crash(), is_crash);
        }
    }

    #[test]
    fn deserialized_messages_are_truncated_at_a_character_boundary() {
        let panicked = Ending::Panicked {
            message: "\u{20ac}".repeat(400_000),
            location: Some("\u{20ac}".repeat(400_000)),
        };
        let text = serde_json::to_string(&panicked).unwrap();
        let read: Ending = serde_json::from_str(&text).unwrap();
        assert_eq!(read, panicked.truncated());
        let Ending::Panicked { message, .. } = read else {
            panic!("{read:?}");
        };
        assert_eq!(message, "\u{20ac}".repeat((4 << 10) / 3));
    }

    #[test]
    fn impossible_endings_are_rejected() {
        for forged in [
            r#"{"how":"exited","code":256}"#,
            r#"{"how":"exited","code":-1}"#,
            r#"{"how":"signaled","signal":0}"#,
            r#"{"how":"signaled","signal":2147483647}"#,
            r#"{"how":"helper","name":"x","exit":{"how":"out_of_memory"}}"#,
            r#"{"how":"helper","name":"x","exit":{"how":"exited","code":256}}"#,
            r#"{"how":"ended_early","exit":{"how":"ended_early","exit":{"how":"out_of_memory"}}}"#,
        ] {
            serde_json::from_str::<Ending>(forged).unwrap_err();
        }
    }
}
