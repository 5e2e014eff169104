//! The payloads. Each run has a number and writes to a ledger outside the box's directory: one line
//! when it begins, and one just before it ends by itself. Its exit code is that number.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};

/// How long an endless payload runs: a leaked one ends at last.
const ENDLESS_DURATION: Duration = Duration::from_secs(600);

/// The signal that a payload of kind [`Kind::Signal`] raises.
pub(crate) const OWN_SIGNAL: Signal = Signal::SIGUSR2;

/// The argument of a payload, as JSON.
#[derive(Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) kind: Kind,
    /// The time after which it ends by itself, in milliseconds.
    pub(crate) lasts: u64,
    pub(crate) ledger: PathBuf,
    /// Whether its orphan also clears its environment, so that only a control group identifies it.
    pub(crate) hides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Exits by itself.
    Exit,
    /// Ends by [`OWN_SIGNAL`].
    Signal,
    /// Exits by itself and leaves an orphan in its own session.
    Orphan,
    /// Runs until it is stopped or killed.
    Endless,
    /// Exits on SIGTERM.
    Graceful,
    /// Ignores SIGTERM.
    Deaf,
    /// The process that an [`Orphan`](Self::Orphan) leaves. Not a payload itself.
    LeftOrphan,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Exit,
        Self::Signal,
        Self::Orphan,
        Self::Endless,
        Self::Graceful,
        Self::Deaf,
    ];

    pub(crate) fn ends_by_itself(self) -> bool {
        matches!(self, Self::Exit | Self::Signal | Self::Orphan)
    }
}

/// Returns the exit code of a run.
pub(crate) fn code_of(run: usize) -> i32 {
    i32::try_from(run % 200).unwrap_or_default()
}

/// The contents of a ledger: how many runs have begun, and whether the last one was about to end by
/// itself.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) begun: usize,
    pub(crate) ended: bool,
}

impl Ledger {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        Self {
            begun: text
                .lines()
                .filter(|line| line.starts_with("start"))
                .count(),
            ended: text
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("end")),
        }
    }
}

/// Returns the number of runs in all ledgers of this directory.
pub(crate) fn runs(dir: &Path) -> io::Result<usize> {
    let ledgers = fs::read_dir(dir)?.map(|entry| Ok(Ledger::read(&entry?.path()).begun));
    ledgers.sum()
}

impl Payload {
    /// Returns the arguments that make this program the payload.
    pub(crate) fn args(&self) -> [String; 2] {
        let text = serde_json::to_string(self).unwrap_or_default();
        ["--payload".to_owned(), text]
    }

    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let stop = SigSet::from(Signal::SIGTERM);
        match self.kind {
            Kind::LeftOrphan => {
                setsid()?;
                thread::sleep(ENDLESS_DURATION);
                return Ok(());
            }
            Kind::Graceful | Kind::Deaf => stop.thread_block()?,
            _ => {}
        }
        let run = Ledger::read(&self.ledger).begun + 1;
        note(&self.ledger, &format!("start {run}"))?;
        if self.kind == Kind::Orphan {
            self.leave()?;
        }
        if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
            UnixDatagram::unbound()?.send_to(b"READY=1", path)?;
        }
        match self.kind {
            Kind::Endless | Kind::Deaf => thread::sleep(ENDLESS_DURATION),
            Kind::Graceful => _ = stop.wait()?,
            _ => thread::sleep(Duration::from_millis(self.lasts)),
        }
        note(&self.ledger, &format!("end {run}"))?;
        if self.kind == Kind::Signal {
            raise(OWN_SIGNAL)?;
        }
        process::exit(code_of(run))
    }

    fn leave(&self) -> io::Result<()> {
        let left = Self {
            kind: Kind::LeftOrphan,
            ledger: self.ledger.clone(),
            ..*self
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(left.args());
        if self.hides {
            command.env_clear();
        }
        command.spawn()?;
        Ok(())
    }
}

fn note(ledger: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(ledger)?;
    file.write_all(format!("{line}\n").as_bytes())
}
