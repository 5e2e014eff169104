use std::error::Error;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_protocol::FileError;

use crate::{BoxId, ConsoleError, ExecError, RestartPolicy, ShimProgramError, StartError};

/// An error of a [`VmmRuntime`](crate::VmmRuntime): it could not be opened, or an operation on a
/// box failed.
///
/// The message does not repeat the cause. To print both, use [`with_causes`](crate::with_causes).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Another runtime has locked this home. Open another home, or shut that runtime down.
    #[error(
        "home {} is in use by {}; shut that runtime down, or open another home",
        home.display(),
        holder.map_or("another runtime".to_owned(), |pid| format!("the runtime of process {pid}"))
    )]
    Locked {
        /// The home directory.
        home: PathBuf,
        /// The process that holds the lock. `None` if it is unknown or has died; in that case a
        /// child that it forked still holds the lock.
        holder: Option<u32>,
    },
    /// The home belongs to another user, who could replace the programs that run from it.
    #[error(
        "home {} belongs to the user {owner}, who can replace the programs that run from it; chown \
         it, or choose another home",
        home.display()
    )]
    HomeOfAnother {
        /// The home directory.
        home: PathBuf,
        /// The user id of the owner.
        owner: u32,
    },
    /// Other users can write to the home or to a directory above it.
    #[error(
        "other users can write to {} and replace the programs that run from the home {}; run \
         `chmod go-w` on it, or choose another home",
        path.display(),
        home.display()
    )]
    OpenHome {
        /// The home directory.
        home: PathBuf,
        /// The directory that other users can write to.
        path: PathBuf,
    },
    /// The shim program cannot be used.
    #[error(transparent)]
    ShimProgram(#[from] ShimProgramError),
    /// The engine of a box cannot run its payload. The source names the field and the remedy.
    #[error("invalid payload for the engine {engine:?}")]
    InvalidPayload {
        /// The engine of the payload.
        engine: String,
        /// The error of the [check](crate::RuntimeOptions::payload_check).
        source: Box<dyn Error + Send + Sync>,
    },
    /// The range of users of boxes cannot be used.
    #[error(
        "boxes cannot have the users {}-{}: {reason}; change the range, or disable the rule `user`",
        range.start(),
        range.end()
    )]
    BoxUids {
        /// The range that the caller passed.
        range: RangeInclusive<u32>,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// Every user of the range belongs to a box.
    #[error(
        "every user of the range {}-{} belongs to a box; remove boxes, or configure a larger range",
        range.start(),
        range.end()
    )]
    NoFreeUid {
        /// The range.
        range: RangeInclusive<u32>,
    },
    /// A thread of the runtime could not be started.
    #[error(
        "cannot start a thread of the VMM runtime; raise its limit of processes (RLIMIT_NPROC or \
         pids.max)"
    )]
    Thread(#[source] io::Error),
    /// Less space than the [reserve](crate::RuntimeOptions::disk_reserve) is free on the disk.
    #[error(
        "the disk of {} is full: {} MiB are free, less than the reserve of {} MiB; remove files or \
         boxes, or lower the reserve",
        home.display(),
        free >> 20,
        reserve.div_ceil(1 << 20)
    )]
    DiskFull {
        /// The home directory.
        home: PathBuf,
        /// The free bytes.
        free: u64,
        /// The reserve in bytes.
        reserve: u64,
    },
    /// Fewer inodes than the [reserve](crate::RuntimeOptions::disk_reserve) has are free on the disk.
    #[error(
        "the disk of {} is full: {free} inodes are free, less than the reserve of {reserve}; remove \
         files or boxes, or lower the reserve",
        home.display(),
    )]
    OutOfInodes {
        /// The home directory.
        home: PathBuf,
        /// The free inodes.
        free: u64,
        /// The reserve: one inode for every 16 KiB.
        reserve: u64,
    },
    /// No box has this id or name.
    #[error("box {wanted:?} not found; list the boxes to see their ids and names")]
    NotFound {
        /// The id or name that the caller passed.
        wanted: String,
    },
    /// The ids of several boxes begin with this text.
    #[error("the ids of several boxes begin with {wanted:?}; use more characters, or a name")]
    Ambiguous {
        /// The prefix that the caller passed.
        wanted: String,
    },
    /// Another box already has this name.
    #[error("name {name:?} is taken by box {id}; remove that box, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
        /// The id of the box that has the name.
        id: BoxId,
    },
    /// The name is not valid.
    #[error(
        "invalid box name {name:?}; use up to 128 letters, digits, '.', '_' and '-', beginning with \
         a letter or a digit"
    )]
    InvalidName {
        /// The name that the caller passed.
        name: String,
    },
    /// The labels are too many or too large.
    #[error("{count} labels exceed the limit; use up to 1,024, and 1 MiB of keys and values")]
    TooManyLabels {
        /// The number of labels.
        count: usize,
    },
    /// The spec asks for a restart of a box that is removed when it has ended.
    #[error(
        "a box with the restart policy {policy} cannot be removed automatically; use only one of \
         them"
    )]
    RestartOfRemoved {
        /// The restart policy.
        policy: RestartPolicy,
    },
    /// The box is running. Only a removal with force removes a running box.
    #[error("box {id} is running; stop it first, or remove it by force")]
    Running {
        /// The id of the box.
        id: BoxId,
    },
    /// The box is not running.
    #[error("box {id} is not running; start it first")]
    NotRunning {
        /// The id of the box.
        id: BoxId,
    },
    /// The box is still starting: its payload is not ready, such as a guest that boots.
    #[error("box {id} is still starting; wait until it is running")]
    Starting {
        /// The id of the box.
        id: BoxId,
    },
    /// The box is paused: its payload is frozen.
    #[error("box {id} is paused; resume it first")]
    Paused {
        /// The id of the box.
        id: BoxId,
    },
    /// A request to the shim of the box failed, such as a command to run in it.
    #[error("a request to box {id} failed")]
    Exec {
        /// The id of the box.
        id: BoxId,
        /// The cause.
        source: ExecError,
    },
    /// The output of the box cannot be read.
    #[error("the output of box {id} is not available")]
    Console {
        /// The id of the box.
        id: BoxId,
        /// The cause.
        source: ConsoleError,
    },
    /// The box could not be started. Its shim has ended and has been reaped.
    #[error("cannot start box {id}")]
    Start {
        /// The id of the box.
        id: BoxId,
        /// The cause.
        source: StartError,
    },
    /// The shim survived SIGKILL: it is blocked in the kernel.
    #[error(
        "shim {pid} of box {id} still exists {seconds} s after SIGKILL; /proc/{pid}/stack shows \
         where the kernel blocks it; try again when it has ended"
    )]
    Stuck {
        /// The id of the box.
        id: BoxId,
        /// The pid of the shim.
        pid: u32,
        /// The time since the SIGKILL.
        seconds: u64,
    },
    /// Processes of the previous run survived SIGKILL, or the runtime could not search for them
    /// because it had no descriptors or memory left, or the
    /// [cleanup](crate::RuntimeOptions::payload_cleanup) of the engine failed. The runtime retries in
    /// the background; until it succeeds the box can neither start nor be removed.
    #[error("cannot clean up what the previous run of box {id} has left; try again")]
    CleanupFailed {
        /// The id of the box.
        id: BoxId,
        /// The cause.
        source: io::Error,
    },
    /// The `box.json` of the box cannot be read. Repair the file while the runtime is not running,
    /// or remove the box as usual.
    #[error("box {id} is damaged; repair {}, or remove the box", source.path.display())]
    Damaged {
        /// The id of the box.
        id: BoxId,
        /// The file and the cause.
        source: Arc<FileError>,
    },
    /// A file of the runtime or of a box could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A bug in the runtime: the operation panicked. [`VmmRuntime::info`](crate::VmmRuntime::info)
    /// returns the current state of the box.
    #[error(
        "the operation panicked: {message}; inspect the box before you try again, and report this \
         bug"
    )]
    Panicked {
        /// The panic message.
        message: String,
    },
    /// The runtime is shutting down or has shut down. Open a new one.
    #[error("the VMM runtime has shut down; open it again")]
    Closed,
}

#[cfg(test)]
mod tests {
    use vmm_protocol::with_causes;

    use super::*;

    #[test]
    fn each_cause_is_in_the_chain_once_and_not_in_the_message_of_the_error_above_it() {
        let full = || io::Error::other("disk full");
        let file = |action| FileError::new(action, "/box/file", full());
        let id = || "b1".parse().unwrap();
        let start = |source| RuntimeError::Start { id: id(), source };
        for (error, expected) in [
            (file("write").into(), "cannot write /box/file: disk full"),
            (
                start(StartError::File(file("open"))),
                "cannot start box b1: cannot open /box/file: disk full",
            ),
            (
                start(StartError::Spawn(full())),
                "cannot start box b1: cannot spawn shim: disk full",
            ),
            (
                RuntimeError::CleanupFailed {
                    id: id(),
                    source: io::Error::new(io::ErrorKind::ResourceBusy, file("remove")),
                },
                "cannot clean up what the previous run of box b1 has left; try again: cannot \
                 remove /box/file: disk full",
            ),
            (
                RuntimeError::Damaged {
                    id: id(),
                    source: Arc::new(file("read")),
                },
                "box b1 is damaged; repair /box/file, or remove the box: cannot read /box/file: \
                 disk full",
            ),
        ] {
            assert_eq!(with_causes(&error), expected);
            let mut above: &dyn std::error::Error = &error;
            while let Some(cause) = above.source() {
                assert!(!above.to_string().contains(&cause.to_string()), "{above}");
                above = cause;
            }
        }
    }
}
