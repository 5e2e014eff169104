//! The payloads. Each run reports its beginning to the observer, which replies with the number of
//! the run, and its end just before it ends by itself. Its exit code is that number.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::parent_id;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};

use crate::observer::Greeting;

/// How long an endless payload runs: a leaked one ends at last.
const ENDLESS_DURATION: Duration = Duration::from_secs(600);

/// The signal that a payload of kind [`Kind::Signal`] raises.
pub(crate) const OWN_SIGNAL: Signal = Signal::SIGUSR2;

/// The argument of a payload, as JSON.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) kind: Kind,
    /// The time after which it ends by itself, in milliseconds.
    pub(crate) lasts: u64,
    /// The name of its box.
    pub(crate) name: String,
    /// The abstract address of the observer.
    pub(crate) observer: String,
    /// Whether its orphan also clears its environment, so that only a control group identifies it.
    pub(crate) hides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Exits by itself.
    Exit,
    /// Exits by itself with code 0.
    Success,
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
    /// Exits before it is ready.
    Early,
    /// A program that does not exist.
    Missing,
    /// The process that an [`Orphan`](Self::Orphan) leaves. Not a payload itself.
    LeftOrphan,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Exit,
        Self::Success,
        Self::Signal,
        Self::Orphan,
        Self::Endless,
        Self::Graceful,
        Self::Deaf,
        Self::Early,
        Self::Missing,
    ];

    pub(crate) fn ends_by_itself(self) -> bool {
        matches!(
            self,
            Self::Exit | Self::Success | Self::Signal | Self::Orphan
        )
    }

    /// Returns whether a start must fail.
    pub(crate) fn cannot_start(self) -> bool {
        matches!(self, Self::Early | Self::Missing)
    }

    /// Returns the exit code of a run that exits by itself.
    pub(crate) fn code_of(self, run: usize) -> i32 {
        match self {
            Self::Success => 0,
            _ => i32::try_from(run % 200).unwrap_or_default(),
        }
    }
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
                // The observer follows it by its pidfd.
                drop(self.report()?);
                thread::sleep(ENDLESS_DURATION);
                return Ok(());
            }
            Kind::Graceful | Kind::Deaf => stop.thread_block()?,
            _ => {}
        }
        let (mut observer, run) = self.report()?;
        if self.kind == Kind::Orphan {
            self.leave()?;
        }
        if self.kind != Kind::Early
            && let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        {
            UnixDatagram::unbound()?.send_to(b"READY=1", path)?;
        }
        match self.kind {
            Kind::Endless | Kind::Deaf => thread::sleep(ENDLESS_DURATION),
            Kind::Graceful => _ = stop.wait()?,
            _ => thread::sleep(Duration::from_millis(self.lasts)),
        }
        observer.get_mut().write_all(b"end\n")?;
        observer.read_line(&mut String::new())?;
        if self.kind == Kind::Signal {
            raise(OWN_SIGNAL)?;
        }
        process::exit(self.kind.code_of(run))
    }

    /// Reports to the observer that this process has begun. Returns the connection and the number
    /// of the run.
    fn report(&self) -> Result<(BufReader<UnixStream>, usize), Box<dyn Error>> {
        let address = SocketAddr::from_abstract_name(&self.observer)?;
        let mut stream = UnixStream::connect_addr(&address)?;
        let mut greeting = serde_json::to_vec(&Greeting {
            name: self.name.clone(),
            shim: parent_id(),
            is_orphan: self.kind == Kind::LeftOrphan,
        })?;
        greeting.push(b'\n');
        stream.write_all(&greeting)?;
        let mut stream = BufReader::new(stream);
        let mut run = String::new();
        stream.read_line(&mut run)?;
        Ok((stream, run.trim().parse()?))
    }

    fn leave(&self) -> io::Result<()> {
        let left = Self {
            kind: Kind::LeftOrphan,
            ..self.clone()
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
