use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::procfs;

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
    /// `vmm-shim warm <directory>`: a shim that waits for a box of the home with this directory of
    /// boxes. It [replaces](Self::replace_arguments) its arguments when it gets an [`Assignment`](crate::Assignment).
    Warm {
        /// The directory that contains the box directories.
        dir: PathBuf,
    },
}

/// The size of the space that the arguments of a warm shim reserve: it has room for an id of 80
/// characters, twice.
const RESERVED_ARGUMENT_BYTES: usize = 168;

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
            "warm" => Some(Self::Warm {
                dir: args.next()?.into(),
            }),
            _ => None,
        }
    }

    /// Returns the arguments that follow [`ARGV0`].
    pub fn args(&self) -> Vec<OsString> {
        match self {
            Self::Box { id, dir } => vec!["box".into(), id.into(), dir.into()],
            Self::Warm { dir } => {
                let reserved = " ".repeat(RESERVED_ARGUMENT_BYTES);
                vec!["warm".into(), dir.into(), reserved.into()]
            }
        }
    }

    /// Replaces the arguments of the calling process, as other processes see them, with those of
    /// this invocation.
    ///
    /// # Errors
    ///
    /// If the arguments are longer than those with which the process was started, or the kernel does
    /// not allow the change.
    pub fn replace_arguments(&self) -> io::Result<()> {
        let args = [OsString::from(ARGV0)].into_iter().chain(self.args());
        procfs::replace_own_arguments(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_the_arguments_of_an_invocation() {
        let of_box = Invocation::Box {
            id: "b1".into(),
            dir: "/boxes/b1".into(),
        };
        let warm = Invocation::Warm {
            dir: "/boxes".into(),
        };
        for invocation in [of_box, warm] {
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
            &["vmm-shim", "warm"],
            &[],
        ] {
            assert_eq!(Invocation::parse(args.iter().map(OsString::from)), None);
        }
    }
}
