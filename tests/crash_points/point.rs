//! Names for the points at which a fault happens.

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;

/// What the subject does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Start,
    /// As `Start`, while a warm shim waits.
    WarmStart,
    Stop,
    Remove,
    /// The payload exits by itself.
    Exit,
    /// The payload exits by itself, and its policy allows one restart.
    Restart,
    /// The payload exits by itself, after which its box is removed.
    AutoRemove,
    Shutdown,
    /// Opens a home that a killed runtime has left.
    Recover,
}

/// Which processes the fault can happen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Runtime,
    Shim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, before the call takes effect.
    Kill,
    /// The call fails.
    Error(Errno),
}

/// All points of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    pub operation: Operation,
    pub detached: bool,
    pub target: Target,
    pub fault: Fault,
}

/// The `number`-th counted call of the target during the operation, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub series: Series,
    pub number: usize,
}

const OPERATIONS: [(&str, Operation); 10] = [
    ("create", Operation::Create),
    ("start", Operation::Start),
    ("warm-start", Operation::WarmStart),
    ("stop", Operation::Stop),
    ("remove", Operation::Remove),
    ("exit", Operation::Exit),
    ("restart", Operation::Restart),
    ("auto-remove", Operation::AutoRemove),
    ("shutdown", Operation::Shutdown),
    ("recover", Operation::Recover),
];
const DETACHED: [(&str, bool); 2] = [("attached", false), ("detached", true)];
const TARGETS: [(&str, Target); 2] = [("runtime", Target::Runtime), ("shim", Target::Shim)];
const FAULTS: [(&str, Fault); 4] = [
    ("kill", Fault::Kill),
    ("ENOSPC", Fault::Error(Errno::ENOSPC)),
    ("EIO", Fault::Error(Errno::EIO)),
    ("EMFILE", Fault::Error(Errno::EMFILE)),
];

impl Series {
    pub fn all() -> impl Iterator<Item = Self> {
        let names = FAULTS.iter().flat_map(|(_, fault)| {
            OPERATIONS.iter().flat_map(move |(_, operation)| {
                DETACHED.iter().flat_map(move |(_, detached)| {
                    TARGETS.iter().map(move |(_, target)| Self {
                        operation: *operation,
                        detached: *detached,
                        target: *target,
                        fault: *fault,
                    })
                })
            })
        });
        names.filter(Self::exists)
    }

    fn exists(&self) -> bool {
        match self.operation {
            // Runs no shim, and its boxes are of both kinds.
            Operation::Create | Operation::Recover => {
                !self.detached && self.target == Target::Runtime
            }
            // Leaves its shim alone.
            Operation::Shutdown if self.detached => self.target == Target::Runtime,
            _ => true,
        }
    }

    pub fn at(self, number: usize) -> Point {
        Point {
            series: self,
            number,
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, detached) = (
            name(&OPERATIONS, self.operation),
            name(&DETACHED, self.detached),
        );
        let (target, fault) = (name(&TARGETS, self.target), name(&FAULTS, self.fault));
        write!(f, "{operation}/{detached}/{target}/{fault}")
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not like start/attached/runtime/kill");
        let mut parts = text.split('/');
        let series = Self {
            operation: find(&OPERATIONS, parts.next()).ok_or_else(error)?,
            detached: find(&DETACHED, parts.next()).ok_or_else(error)?,
            target: find(&TARGETS, parts.next()).ok_or_else(error)?,
            fault: find(&FAULTS, parts.next()).ok_or_else(error)?,
        };
        parts.next().map_or(Ok(series), |_| Err(error()))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.series, self.number)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not like start/attached/runtime/kill/17");
        let (series, number) = text.rsplit_once('/').ok_or_else(error)?;
        Ok(series
            .parse::<Series>()?
            .at(number.parse().map_err(|_| error())?))
    }
}

fn name<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    let found = names.iter().find(|(_, known)| *known == value);
    found.map_or("?", |(name, _)| name)
}

fn find<T: Copy>(names: &[(&'static str, T)], name: Option<&str>) -> Option<T> {
    let found = names.iter().find(|(known, _)| Some(*known) == name);
    found.map(|(_, value)| *value)
}
