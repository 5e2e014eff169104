use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_protocol::FileError;

use crate::{ShimProgramError, StartError};

/// Why the runtime could not be opened, or could not do something to a box.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Another runtime has this home. One of them has to take another, or to be shut down.
    #[error(
        "the home {} is in use by {}; shut that runtime down, or open another home",
        home.display(),
        holder.map_or("another runtime".to_owned(), |pid| format!("the runtime of process {pid}"))
    )]
    Locked {
        /// The home directory.
        home: PathBuf,
        /// The process that has it. `None` if it could not be told, or has died: a child that it
        /// has forked then still has the home.
        holder: Option<u32>,
    },
    /// The home belongs to another user, who can change what is run from it.
    #[error(
        "the home {} belongs to the user {owner}, who can change what is run from it; chown it, or \
         choose another home",
        home.display()
    )]
    HomeOfAnother {
        /// The home directory.
        home: PathBuf,
        /// The id of the user.
        owner: u32,
    },
    /// Other users can write to the home, or to a directory above it.
    #[error(
        "other users can write to {}, and change what is run from the home {}; run `chmod go-w` on \
         it, or choose another home",
        path.display(),
        home.display()
    )]
    OpenHome {
        /// The home directory.
        home: PathBuf,
        /// The directory that they can write to.
        path: PathBuf,
    },
    /// There is nothing to run shims with.
    #[error(transparent)]
    ShimProgram(#[from] ShimProgramError),
    /// The threads that the runtime works on could not be started.
    #[error("cannot start the threads of the runtime: {0}")]
    Thread(#[source] io::Error),
    /// No box has this id or name.
    #[error("there is no box {wanted:?}")]
    NotFound {
        /// As it was asked for.
        wanted: String,
    },
    /// Another box has this name.
    #[error("the box {id} is already named {name:?}; remove it, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// A name that could be taken for something else.
    #[error(
        "{name:?} cannot be the name of a box: at most 128 letters, digits, '.', '_' and '-', \
         beginning with a letter or a digit"
    )]
    InvalidName {
        /// As it was given.
        name: String,
    },
    /// A box has at most 1,024 labels, and 1 MiB of keys and values.
    #[error(
        "{count} labels are too many or too large: at most 1,024, and 1 MiB of keys and values"
    )]
    TooManyLabels {
        /// How many there are.
        count: usize,
    },
    /// Only a box that does not run can be removed without force.
    #[error("the box {id} is running; stop it first, or remove it by force")]
    Running {
        /// Which one.
        id: String,
    },
    /// It could not be started; its shim is gone again.
    #[error("the box {id} could not be started: {source}")]
    Start {
        /// Which one.
        id: String,
        /// Why.
        source: StartError,
    },
    /// A process that survives SIGKILL: it is stuck in the kernel.
    #[error("the shim {pid} of the box {id} is still there {seconds} s after SIGKILL")]
    Stuck {
        /// Which box.
        id: String,
        /// Its shim.
        pid: u32,
        /// For how long.
        seconds: u64,
    },
    /// Processes that its last run has left survive SIGKILL, or could not be looked for, of want of
    /// descriptors or memory. The runtime goes on trying; until then the box can neither start nor be
    /// removed.
    #[error(
        "what the last run of the box {id} has left could not be cleared away: {source}; try again"
    )]
    CleanupFailed {
        /// Which box.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// Its `box.json` cannot be read. It can be repaired by hand while the runtime is down, or
    /// removed as any other box.
    #[error("the box {id} is damaged: {source}; repair that file, or remove the box")]
    Damaged {
        /// Which one.
        id: String,
        /// The file, and what is wrong with it.
        source: Arc<FileError>,
    },
    /// A file of the runtime or of a box.
    #[error(transparent)]
    File(#[from] FileError),
    /// A bug in the runtime: the operation panicked. The box is as it was, or as `info` says.
    #[error("the operation panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The runtime is shutting down, or has; open another.
    #[error("the runtime has shut down")]
    Closed,
}

/// What a panic said.
pub(crate) fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "not a text".to_owned())
}
