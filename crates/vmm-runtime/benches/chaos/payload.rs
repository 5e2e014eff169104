//! What the boxes run. Each run is numbered, and keeps a ledger outside the box's directory: a line
//! when it begins, and one right before it ends by itself. The code that it returns is that number.

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

/// A leaked process ends some day.
const LONG: Duration = Duration::from_secs(600);

/// The signal that a payload of kind [`Kind::Signal`] sends to itself.
pub(crate) const OWN_SIGNAL: Signal = Signal::SIGUSR2;

/// The argument of a payload, in JSON.
#[derive(Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) kind: Kind,
    /// After how many milliseconds it ends by itself.
    pub(crate) lasts: u64,
    pub(crate) ledger: PathBuf,
    /// Whether its orphan leaves the environment, too: only a control group knows it then.
    pub(crate) hides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Exits by itself.
    Exit,
    /// Ends by [`OWN_SIGNAL`].
    Signal,
    /// Exits by itself, and leaves a process in a session of its own.
    Orphan,
    /// Runs until it is stopped or killed.
    Endless,
    /// Exits when it is asked to stop.
    Graceful,
    /// Ignores SIGTERM.
    Deaf,
    /// The process that an [`Orphan`](Self::Orphan) leaves. Not a payload.
    Left,
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

/// The exit code of a run.
pub(crate) fn code_of(run: usize) -> i32 {
    i32::try_from(run % 200).unwrap_or_default()
}

/// What the ledger of a box says: how many runs have begun, and whether the last one of them was
/// about to end by itself.
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

/// How many runs have begun, by all ledgers in this directory.
pub(crate) fn runs(dir: &Path) -> io::Result<usize> {
    let ledgers = fs::read_dir(dir)?.map(|entry| Ok(Ledger::read(&entry?.path()).begun));
    ledgers.sum()
}

impl Payload {
    /// The arguments with which this program becomes the payload.
    pub(crate) fn args(&self) -> [String; 2] {
        let text = serde_json::to_string(self).unwrap_or_default();
        ["--payload".to_owned(), text]
    }

    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let stop = SigSet::from(Signal::SIGTERM);
        match self.kind {
            Kind::Left => {
                setsid()?;
                thread::sleep(LONG);
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
            Kind::Endless | Kind::Deaf => thread::sleep(LONG),
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
            kind: Kind::Left,
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
