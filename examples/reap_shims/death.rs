use std::fmt;
use std::process::Command;

/// A way for a shim to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By itself, with a code.
    Exits(u8),
    /// As a panic that aborts does.
    Aborts,
    /// By pid, when no handle to it is left.
    KilledFromOutside,
    /// Its start is given up half way.
    DroppedInInit,
    /// By itself, and whoever started it waits for it.
    CollectedByOwner(u8),
}

impl Death {
    /// All of them in turn.
    pub fn of(shim: usize) -> Self {
        let code = u8::try_from(shim % 100).unwrap_or_default();
        match shim % 5 {
            0 => Self::Exits(code),
            1 => Self::Aborts,
            2 => Self::KilledFromOutside,
            3 => Self::DroppedInInit,
            _ => Self::CollectedByOwner(code),
        }
    }

    /// A program that dies this way, `delay` seconds from now; or that waits to be killed.
    pub fn program(self, delay: f64) -> Command {
        let script = match self {
            Self::Exits(code) | Self::CollectedByOwner(code) => {
                format!("sleep {delay}; exit {code}")
            }
            Self::Aborts => format!("sleep {delay}; ulimit -c 0; kill -ABRT $$"),
            Self::KilledFromOutside | Self::DroppedInInit => "exec sleep 1000".to_owned(),
        };
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exits(code) => write!(f, "exits {code}"),
            Self::Aborts => f.write_str("aborts, as a panic does"),
            Self::KilledFromOutside => f.write_str("killed by pid, no handle"),
            Self::DroppedInInit => f.write_str("dropped half-initialised"),
            Self::CollectedByOwner(code) => write!(f, "exits {code}, its owner waits"),
        }
    }
}
