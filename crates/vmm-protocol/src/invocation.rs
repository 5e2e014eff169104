use std::ffi::OsString;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

/// The name (`argv[0]`) of every shim process. A process recognizes by it that it is a shim.
pub const ARGV0: &str = "vmm-shim";

static IS_SHIM_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Records that this program can be its own shim. `vmm_shim::run_if_shim` calls it.
pub fn declare_shim_program() {
    IS_SHIM_PROGRAM.store(true, Ordering::Release);
}

/// Returns true if this program can be its own shim, because it has called
/// `vmm_shim::run_if_shim`.
pub fn can_be_shim() -> bool {
    IS_SHIM_PROGRAM.load(Ordering::Acquire)
}

/// The arguments of a shim process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `vmm-shim box <id> <directory>`: the shim of a box. The arguments serve people who read the
    /// process list, and a runtime that searches for a shim without a record.
    Box {
        /// The id of the box.
        id: String,
        /// The box directory, which is also the current directory of the shim.
        dir: PathBuf,
    },
    /// `vmm-shim payload <pid of the shim> <options> <program> ...`: a launcher, which becomes the
    /// payload.
    Payload {
        /// The pid of the shim. The payload dies with it.
        shim: u32,
        /// The limits of the payload and the source of its environment, as JSON. Only the engine
        /// `process` interprets it.
        confinement: String,
        /// The program and its arguments.
        command: Vec<OsString>,
    },
}

impl Invocation {
    /// Returns the invocation of the calling process, or `None` if it is not a shim.
    pub fn of_this_process() -> Option<Self> {
        Self::parse(std::env::args_os())
    }

    /// Parses the arguments of a process, including `argv[0]`. Returns `None` if it is not a shim.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        if args.next()? != ARGV0 {
            return None;
        }
        match args.next()?.to_str()? {
            "box" => Some(Self::Box {
                id: args.next()?.into_string().ok()?,
                dir: args.next()?.into(),
            }),
            "payload" => Some(Self::Payload {
                shim: args.next()?.to_str()?.parse().ok()?,
                confinement: args.next()?.into_string().ok()?,
                command: args.collect(),
            }),
            _ => None,
        }
    }

    /// Returns the arguments that follow [`ARGV0`].
    pub fn args(&self) -> Vec<OsString> {
        match self {
            Self::Box { id, dir } => vec!["box".into(), id.into(), dir.into()],
            Self::Payload {
                shim,
                confinement,
                command,
            } => {
                let mut args = vec![
                    "payload".into(),
                    shim.to_string().into(),
                    confinement.into(),
                ];
                args.extend_from_slice(command);
                args
            }
        }
    }

    /// Creates the invocation of a command that dies with the calling process. The command inherits
    /// the environment of its launcher, and has no limits.
    pub fn bound_to_this_process(command: &[String]) -> Self {
        Self::payload_of_this_process("{}".to_owned(), command)
    }

    /// Creates the invocation of a payload of the calling process.
    pub fn payload_of_this_process(confinement: String, command: &[String]) -> Self {
        Self::Payload {
            shim: process::id(),
            confinement,
            command: command.iter().map(OsString::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_the_arguments_of_an_invocation() {
        for invocation in [
            Invocation::Box {
                id: "b1".into(),
                dir: "/boxes/b1".into(),
            },
            Invocation::bound_to_this_process(&["sh".into(), "-c".into(), "box".into()]),
        ] {
            let args = [OsString::from(ARGV0)].into_iter().chain(invocation.args());
            assert_eq!(Invocation::parse(args), Some(invocation));
        }
    }

    #[test]
    fn parse_rejects_other_arguments() {
        for args in [
            &["shimd", "box", "b"][..],
            &["vmm-shim"],
            &["vmm-shim", "--help"],
            &["vmm-shim", "box", "b"],
            &[],
        ] {
            assert_eq!(Invocation::parse(args.iter().map(OsString::from)), None);
        }
    }
}
