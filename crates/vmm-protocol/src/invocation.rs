use std::ffi::OsString;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shim's first argument is: how a process knows that it is one.
pub const ARGV0: &str = "vmm-shim";

static IS_SHIM_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Records that this program can be its own shim: `vmm_shim::run_if_shim` has been called in it.
pub fn declare_shim_program() {
    IS_SHIM_PROGRAM.store(true, Ordering::Release);
}

/// Returns whether this program can be its own shim.
pub fn can_be_shim() -> bool {
    IS_SHIM_PROGRAM.load(Ordering::Acquire)
}

/// What a program was started as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `vmm-shim box <id> <directory>`: the shim of a box. For people who look at the process list,
    /// and for a runtime that looks for a shim of which it has no record.
    Box {
        /// The box's id.
        id: String,
        /// The box's directory, which is also the current one.
        dir: PathBuf,
    },
    /// `vmm-shim payload <pid of the shim> <confinement> <program> ...`: about to become a payload.
    Payload {
        /// Whom to die with.
        shim: u32,
        /// What is to bound it, and where its environment comes from, in JSON. The shim's own affair.
        confinement: String,
        /// The program and its arguments.
        command: Vec<OsString>,
    },
}

impl Invocation {
    /// Of this process; `None` if it is not a shim.
    pub fn of_this_process() -> Option<Self> {
        Self::parse(std::env::args_os())
    }

    /// From the arguments of a process, the first one included; `None` if it is not a shim.
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

    /// The arguments, behind [`ARGV0`], by which `vmm_shim::run_if_shim` knows it.
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

    /// For a command that dies with this process, has the environment that it is started with, and
    /// is not bounded in any other way.
    pub fn bound_to_this_process(command: &[String]) -> Self {
        Self::payload_of_this_process("{}".to_owned(), command)
    }

    /// For a payload of this process.
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
    fn an_invocation_is_understood_by_the_process_it_starts() {
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
    fn any_other_program_is_not_a_shim() {
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
