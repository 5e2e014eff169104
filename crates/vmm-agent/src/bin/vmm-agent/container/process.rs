use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::unistd::{chdir, getcwd};
use pidfd_spawn::Command;
use rustix::fs::{FileType, Mode, Uid, fchown, fstat, makedev};
use rustix::process::{Resource, Rlimit, setrlimit, umask};
use vmm_protocol::pod::{ProcessLimit, ProcessSpec, create_dir_in_root};

use super::credentials;
use super::error::ContainerError;
use crate::users::User;

/// Creates the working directory of the first process of a container, in the root of that, unless it exists.
pub(super) fn create_working_dir(process: &ProcessSpec) -> Result<(), ContainerError> {
    let dir = &process.cwd;
    if dir.exists() {
        return Ok(());
    }
    let error = ContainerError::system(format!("create the working directory {}", dir.display()));
    create_dir_in_root(Path::new("/"), dir)
        .map(drop)
        .map_err(error)
}

/// Sets how likely the kernel is to kill the process. The root of a container may have no `/proc`, so call it before this
/// process enters it.
pub(super) fn set_oom_score(process: &ProcessSpec) -> Result<(), ContainerError> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    let error = ContainerError::system(format!("set the oom_score_adj {score}"));
    fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(error)
}

/// Gives this process, in the root of its container, what it has as the process of the spec. Returns the command that
/// it becomes.
pub(super) fn prepare(process: &ProcessSpec) -> Result<Command, ContainerError> {
    let (program, args) = process
        .args
        .split_first()
        .ok_or(ContainerError::NoCommand)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&process.env)
        .no_new_privs(process.no_new_privs);
    if process.env.get("HOME").is_none_or(String::is_empty) {
        command.env("HOME", User::home(process.uid));
    }
    // As root, which can enter directories that the user cannot, as with runc. An error is that of the user.
    let is_entered = chdir(&process.cwd).is_ok();
    own_streams(process.uid)?;
    // Before the credentials change: raising a limit needs a capability.
    for limit in &process.limits {
        set_limit(limit)?;
    }
    credentials::change(process)?;
    if !is_entered {
        let error = format!("enter the working directory {}", process.cwd.display());
        chdir(&process.cwd).map_err(ContainerError::system(error))?;
    }
    // A link such as one to `/proc/1/root` leads out of the root. `getcwd(2)` has no absolute path then.
    if !getcwd().is_ok_and(|dir| dir.is_absolute()) {
        return Err(ContainerError::OutsideOfRoot(process.cwd.clone()));
    }
    if let Some(mask) = process.umask {
        umask(Mode::from_raw_mode(mask));
    }
    Ok(command)
}

/// Lets the user open `/dev/stdin`, `/dev/stdout` and `/dev/stderr`.
fn own_streams(uid: u32) -> Result<(), ContainerError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let own = |stream: BorrowedFd<'_>| {
        let status = fstat(stream)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        // All containers share `/dev/null`.
        if kind == FileType::CharacterDevice && status.st_rdev == makedev(1, 3) {
            return Ok(());
        }
        fchown(stream, Some(Uid::from_raw(uid)), None)
    };
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        own(stream).map_err(ContainerError::system("change the owner of a stream"))?;
    }
    Ok(())
}

fn set_limit(limit: &ProcessLimit) -> Result<(), ContainerError> {
    let Some(resource) = resource(&limit.name) else {
        return Ok(());
    };
    let value = Rlimit {
        current: Some(limit.soft),
        maximum: Some(limit.hard),
    };
    let error = ContainerError::system(format!("set the limit {}", limit.name));
    setrlimit(resource, value).map_err(error)
}

/// Returns the resource with a name of `setrlimit(2)`.
fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}
