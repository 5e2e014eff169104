//! Decides whether KVM executes the instructions of a guest.
//!
//! `/dev/kvm` proves little: on some hosts it can be opened, and a guest hangs, or QEMU aborts. So a process
//! runs one instruction in a virtual machine of KVM, and a QEMU boots the kernel of the guest, each with a
//! deadline. A smaller program would not do: there are hosts whose KVM runs the firmware and a boot sector, and
//! hangs in a kernel. The result is kept for the host and the kernel.

use std::env;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use pidfd_spawn::{Command, Stdio};
use serde::{Deserialize, Serialize};
use vmm_protocol::pidfd::wait_exited;
use vmm_protocol::{
    ConfinementRule, DEFAULT_PATH, FileError, InstanceSpec, boot_id, read_file, with_causes,
    write_file_unsynced,
};

use super::command_line::{PROGRAM, SANDBOX};
use super::confinement::Confinement;
use super::files::open_file;
use super::options::{Accelerator, QemuOptions};
use crate::EngineError;
#[cfg(target_arch = "x86_64")]
use crate::sys;

/// The first argument of a process that only probes KVM.
const PROBE_ARGV0: &str = "vmm-kvm-probe";

/// How long one instruction may take, with the start of the process.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long QEMU may take to boot a kernel without a root file system. It takes about a second.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process may take to die. One that KVM keeps in the kernel survives SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// What a process may print as the cause of its failure.
const MAX_OUTPUT_BYTES: u64 = 4096;

const MAX_RECORD_BYTES: u64 = 16 << 10;

/// The descriptor of the kernel in QEMU.
const KERNEL_FD: i32 = 3;

/// What a kernel prints that finds no root file system, before it reboots.
const PANIC: &str = "Kernel panic";

/// Probes KVM and exits, if this process was started for that. Otherwise returns immediately.
///
/// A program with the engine [`Qemu`](crate::Qemu) calls it first in `main`; `vmm_shim::Shim::run_if_shim`
/// does.
pub fn run_if_kvm_probe() {
    if env::args_os().next().is_none_or(|name| name != PROBE_ARGV0) {
        return;
    }
    let code = match halt() {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    };
    std::process::exit(code)
}

#[cfg(target_arch = "x86_64")]
fn halt() -> io::Result<()> {
    sys::kvm::halt()
}

#[cfg(not(target_arch = "x86_64"))]
fn halt() -> io::Result<()> {
    let message = "a guest needs an x86-64 host to run with KVM";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Returns [`Accelerator::Kvm`] or [`Accelerator::Tcg`] for the guest of a spec.
///
/// # Errors
///
/// [`EngineError::KvmUnusable`] if the options demand KVM, and it cannot be used.
pub(super) fn choose(
    spec: &InstanceSpec,
    options: &QemuOptions,
) -> Result<Accelerator, EngineError> {
    let subject = Subject::this(&options.kernel);
    let record = spec.cache_dir.as_ref();
    let record = record.map(|dir| dir.join(subject.record_name()));
    decide(options.accelerator, record, subject, || {
        run(probe(), PROBE_TIMEOUT)
            .and_then(|exit| exit.expect_code(0))
            .map_err(|reason| {
                format!("a virtual machine cannot execute an instruction: {reason}")
            })?;
        trial(spec, options)
            .and_then(|trial| run(trial, TRIAL_TIMEOUT))
            .and_then(Exit::expect_panic)
            .map_err(|reason| format!("QEMU cannot boot the kernel: {reason}"))
    })
}

/// Decides by the record of an earlier check on this host, or by `check`, whose result it records.
fn decide(
    requested: Accelerator,
    record: Option<PathBuf>,
    subject: Subject,
    check: impl FnOnce() -> Result<(), String>,
) -> Result<Accelerator, EngineError> {
    if requested == Accelerator::Tcg {
        return Ok(Accelerator::Tcg);
    }
    let known = record
        .as_ref()
        .and_then(|path| Record::read(path, &subject));
    let failure = match known {
        // The operator may have repaired what an explicit request needs.
        Some(failure) if requested == Accelerator::Auto || failure.is_none() => failure,
        _ => {
            let failure = check().err();
            if let Some(path) = record
                && let Err(error) = (Record {
                    subject,
                    failure: failure.clone(),
                })
                .write(&path)
            {
                let _ = writeln!(io::stderr(), "vmm-shim: {}", with_causes(&error));
            }
            failure
        }
    };
    match (failure, requested) {
        (None, _) => Ok(Accelerator::Kvm),
        (Some(reason), Accelerator::Auto) => {
            let _ = writeln!(
                io::stderr(),
                "vmm-shim: the guest runs without KVM: {reason}"
            );
            Ok(Accelerator::Tcg)
        }
        (Some(reason), _) => Err(EngineError::KvmUnusable { reason }),
    }
}

/// What a check is valid for: a boot of the host, a program of QEMU, and a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    boot_id: Option<String>,
    qemu: Option<FileVersion>,
    kernel: Option<FileVersion>,
}

impl Subject {
    fn this(kernel: &Path) -> Self {
        let mut dirs = env::split_paths(DEFAULT_PATH);
        Self {
            boot_id: boot_id().ok(),
            qemu: dirs.find_map(|dir| FileVersion::of(&dir.join(PROGRAM))),
            kernel: FileVersion::of(kernel),
        }
    }

    /// Returns the name of the record in the cache directory.
    fn record_name(&self) -> String {
        let kernel = self.kernel.as_ref().map_or(0, |kernel| kernel.inode);
        format!("kvm-{kernel}.json")
    }
}

/// A file as it is until its contents, its owner or its mode change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileVersion {
    inode: u64,
    size: u64,
    /// Seconds since 1970.
    changed: i64,
}

impl FileVersion {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            inode: file.ino(),
            size: file.len(),
            changed: file.ctime(),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    subject: Subject,
    /// Why KVM cannot be used.
    failure: Option<String>,
}

impl Record {
    /// Returns the result for this subject, if there is one.
    fn read(path: &Path, subject: &Subject) -> Option<Option<String>> {
        let json = read_file(path, MAX_RECORD_BYTES).ok()?;
        let record: Self = serde_json::from_slice(&json).ok()?;
        (record.subject == *subject).then_some(record.failure)
    }

    fn write(&self, path: &Path) -> Result<(), FileError> {
        let write_error = |error| FileError::new("write", path, error);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(write_error)?;
        }
        let json = serde_json::to_vec(self).map_err(|error| write_error(error.into()))?;
        write_file_unsynced(path, &json)
    }
}

/// Returns the command that executes one instruction.
fn probe() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROBE_ARGV0).env_clear();
    command
}

/// Returns the command of a QEMU with KVM that boots the kernel, with the confinement of the guest's.
fn trial(spec: &InstanceSpec, options: &QemuOptions) -> Result<Command, String> {
    let mut options = options.clone();
    options.accelerator = Accelerator::Kvm;
    let kernel = open_file(&options.kernel, false).map_err(|error| error.to_string())?;
    let mut command = trial_command("kvm", spec.policy.applies(ConfinementRule::Seccomp), kernel);
    let confinement = Confinement::prepare(spec, &options).map_err(|error| with_causes(&error))?;
    confinement.apply(&mut command);
    Ok(command)
}

fn trial_command(accelerator: &str, has_filter: bool, kernel: File) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["-nodefaults", "-no-user-config", "-machine", "q35"])
        .args(["-accel", accelerator, "-cpu", "max", "-m", "256"])
        .args(["-display", "none", "-no-reboot"])
        .args(["-chardev", "stdio,id=console,signal=off"])
        .args(["-serial", "chardev:console"])
        .args(["-kernel", &format!("/proc/self/fd/{KERNEL_FD}")])
        // Without the program of an initrd that is part of the kernel.
        .args(["-append", "console=ttyS0 panic=-1 quiet rdinit=/none"])
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .fd(KERNEL_FD, OwnedFd::from(kernel));
    if has_filter {
        command.args(["-sandbox", SANDBOX]);
    }
    command
}

/// How a process ended, and what it printed.
#[derive(Debug)]
struct Exit {
    status: ExitStatus,
    output: String,
}

impl Exit {
    fn expect_code(self, code: i32) -> Result<(), String> {
        if self.status.code() == Some(code) {
            return Ok(());
        }
        Err(self.describe())
    }

    /// Returns an error unless a kernel was ready to mount its root file system. A CPU that fails before also
    /// resets the machine, which ends QEMU in the same way.
    fn expect_panic(self) -> Result<(), String> {
        if self.status.success() && self.output.contains(PANIC) {
            return Ok(());
        }
        Err(self.describe())
    }

    fn describe(&self) -> String {
        let output = self.output.trim();
        let how = match self.status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit code {}", self.status.code().unwrap_or(255)),
        };
        if output.is_empty() {
            how
        } else {
            format!("{output} ({how})")
        }
    }
}

/// Runs a command that dies with this process. Kills it after the timeout.
fn run(mut command: Command, timeout: Duration) -> Result<Exit, String> {
    let to_text = |error: io::Error| error.to_string();
    let (output, writer) = io::pipe().map_err(to_text)?;
    command
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(writer.try_clone().map_err(to_text)?))
        .stderr(OwnedFd::from(writer))
        .reset_ignored_signals(true)
        .parent_death_signal(SIGKILL);
    let child = command.spawn();
    // This process has no other write end then.
    drop(command);
    let mut child = child.map_err(|error| to_text(error.into()))?;
    let has_ended = wait_exited(child.pidfd(), Instant::now() + timeout).map_err(to_text)?;
    if !has_ended {
        let _ = child.kill();
        let deadline = Instant::now() + KILL_TIMEOUT;
        if !wait_exited(child.pidfd(), deadline).map_err(to_text)? {
            return Err(format!("no end within {timeout:?}, and after SIGKILL"));
        }
    }
    let status = child.wait().map_err(to_text)?;
    if !has_ended {
        return Err(format!("no end within {timeout:?}"));
    }
    Ok(Exit {
        status,
        output: read_output(output),
    })
}

/// Reads what a process that has ended has printed.
fn read_output(output: PipeReader) -> String {
    let mut text = Vec::new();
    // Without a descendant that has the pipe, the end of it follows.
    let _ = output.take(MAX_OUTPUT_BYTES).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests;
