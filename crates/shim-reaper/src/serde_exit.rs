//! The serialized form of [`ShimExit`].

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ReapedBy, ResourceUsage, ShimExit};

/// Without `code` and `signal`, the status is unknown.
#[derive(Debug, Serialize, Deserialize)]
struct Exit {
    pid: u32,
    #[serde(default)]
    code: Option<u8>,
    #[serde(default)]
    signal: Option<u8>,
    #[serde(default)]
    core_dumped: bool,
    reaped_by: ReapedBy,
    #[serde(default)]
    rusage: Option<ResourceUsage>,
}

/// The reason why a serialized exit has no wait status.
#[derive(Debug, thiserror::Error)]
enum InvalidExit {
    #[error("an exit has a code or a signal; remove one of them")]
    CodeAndSignal,
    #[error("signal {0} cannot end a process; the number is from 1 to 126")]
    Signal(u8),
}

impl Serialize for ShimExit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Exit::from(*self).serialize(to)
    }
}

impl<'de> Deserialize<'de> for ShimExit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Exit::deserialize(from)?
            .try_into()
            .map_err(D::Error::custom)
    }
}

impl From<ShimExit> for Exit {
    fn from(exit: ShimExit) -> Self {
        let byte = |number: i32| u8::try_from(number).ok();
        Self {
            pid: exit.pid,
            code: exit.code().and_then(byte),
            signal: exit.signal().and_then(byte),
            core_dumped: exit.status.is_some_and(|status| status.core_dumped()),
            reaped_by: exit.reaped_by,
            rusage: exit.rusage,
        }
    }
}

impl TryFrom<Exit> for ShimExit {
    type Error = InvalidExit;

    fn try_from(exit: Exit) -> Result<Self, InvalidExit> {
        // As in wait(2): the code is the second byte; the first is the signal, with the core flag.
        let raw = match (exit.code, exit.signal) {
            (None, None) => None,
            (Some(code), None) => Some(i32::from(code) << 8),
            (None, Some(signal @ 1..=126)) => {
                Some(i32::from(signal) | i32::from(exit.core_dumped) << 7)
            }
            (None, Some(signal)) => return Err(InvalidExit::Signal(signal)),
            (Some(_), Some(_)) => return Err(InvalidExit::CodeAndSignal),
        };
        Ok(Self {
            pid: exit.pid,
            status: raw.map(ExitStatus::from_raw),
            reaped_by: exit.reaped_by,
            rusage: exit.rusage,
        })
    }
}
