//! Decides whether KVM executes the instructions of a guest.
//!
//! `/dev/kvm` proves little: on some hosts it can be opened, and a guest hangs, or QEMU aborts. So a process
//! runs one instruction in a virtual machine of KVM, and a QEMU boots the kernel of the guest, each with a
//! deadline. A smaller program would not do: there are hosts whose KVM runs the firmware and a boot sector, and
//! hangs in a kernel. The result is kept for the host and the kernel.

mod record;

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use pidfd_spawn::{Command, Stdio};
use rustix::io::ioctl_fionbio;
use vmm_protocol::pidfd::wait_exited;
use vmm_protocol::{ConfinementRule, DEFAULT_PATH, InstanceSpec, truncate_text, with_causes};

use self::record::{Record, RecordLock, Subject};
use super::command_line::{PROGRAM, SANDBOX};
use super::confinement::Confinement;
use super::files::{KERNEL, open_for_user};
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

/// The longest time a check takes. Other shims wait this long for its result.
const CHECK_TIMEOUT: Duration = PROBE_TIMEOUT
    .saturating_add(TRIAL_TIMEOUT)
    .saturating_add(KILL_TIMEOUT.saturating_mul(2));

/// As much output of a process as its pipe holds, pipe(7). A process that prints more waits.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;

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

/// Why a check of KVM has failed.
#[derive(Debug)]
enum CheckError {
    /// KVM does not work on this host.
    Unusable(String),
    /// The check could not run, which can be different the next time.
    NotRun(String),
}

impl CheckError {
    /// Adds what was being checked.
    fn of(self, step: &str) -> Self {
        match self {
            Self::Unusable(reason) => Self::Unusable(format!("{step}: {reason}")),
            Self::NotRun(reason) => Self::NotRun(format!("{step}: {reason}")),
        }
    }

    fn into_reason(self) -> String {
        match self {
            Self::Unusable(reason) | Self::NotRun(reason) => reason,
        }
    }
}

/// Returns [`Accelerator::Kvm`] or [`Accelerator::Tcg`] for the guest of a spec.
///
/// # Errors
///
/// [`EngineError::KvmUnusable`] if the options demand KVM, and it cannot be used; [`EngineError::GuestFile`] if there is
/// no kernel to check it with.
pub(super) fn choose(
    spec: &InstanceSpec,
    options: &QemuOptions,
) -> Result<Accelerator, EngineError> {
    if options.accelerator == Accelerator::Tcg {
        return Ok(Accelerator::Tcg);
    }
    let has_user = spec.policy.applies(ConfinementRule::User);
    let uid = spec.uid.filter(|_| has_user);
    let kernel = open_for_user(KERNEL, &options.kernel, uid)?;
    let subject =
        Subject::this(&kernel).map_err(EngineError::system("read the kernel's version"))?;
    decide(
        options.accelerator,
        spec.cache_dir.as_deref(),
        subject,
        || {
            run(probe(), PROBE_TIMEOUT)
                .and_then(|exit| exit.expect_code(0))
                .map_err(|error| error.of("a virtual machine cannot execute an instruction"))?;
            trial(spec, options, kernel)
                .and_then(|trial| run(trial, TRIAL_TIMEOUT))
                .and_then(Exit::expect_panic)
                .map_err(|error| error.of("QEMU cannot boot the kernel"))
        },
    )
}

/// Decides by what is known of the host, or by `check`.
fn decide(
    requested: Accelerator,
    cache_dir: Option<&Path>,
    subject: Subject,
    check: impl FnOnce() -> Result<(), CheckError>,
) -> Result<Accelerator, EngineError> {
    let failure = match cache_dir {
        Some(dir) => known_failure(requested, dir, subject, check),
        None => check().err().map(CheckError::into_reason),
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

/// Returns why KVM cannot be used, if it cannot: from the record of an earlier check on this host, or from `check`,
/// whose result it records. Of shims that start at once, one checks.
fn known_failure(
    requested: Accelerator,
    cache_dir: &Path,
    subject: Subject,
    check: impl FnOnce() -> Result<(), CheckError>,
) -> Option<String> {
    let path = Record::path(cache_dir, &subject);
    let known = |counts_failure: bool| {
        let record = Record::read(&path, &subject);
        record.filter(|record| counts_failure || record.failure.is_none())
    };
    // The operator may have repaired what an explicit request needs.
    let counts_failure = requested == Accelerator::Auto;
    if let Some(record) = known(counts_failure) {
        return record.failure;
    }
    let lock = match RecordLock::take(&path, CHECK_TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            return Some(format!(
                "the check of another guest has not ended within {CHECK_TIMEOUT:?}"
            ));
        }
        // Such as a file system without locks. The check runs all the same.
        lock => lock.ok(),
    };
    let has_waited = lock.as_ref().is_some_and(|lock| lock.has_waited);
    if let Some(record) = known(counts_failure || has_waited) {
        return record.failure;
    }
    let failure = match check() {
        Ok(()) => None,
        Err(CheckError::Unusable(reason)) => Some(reason),
        Err(CheckError::NotRun(reason)) => return Some(reason),
    };
    let record = Record { subject, failure };
    if let Err(error) = record.write(&path) {
        let _ = writeln!(io::stderr(), "vmm-shim: {}", with_causes(&error));
    }
    record.failure
}

/// Returns the command that executes one instruction.
fn probe() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROBE_ARGV0).env_clear();
    command
}

/// Returns the command of a QEMU with KVM that boots the kernel, with the confinement of the guest's.
fn trial(spec: &InstanceSpec, options: &QemuOptions, kernel: File) -> Result<Command, CheckError> {
    let mut options = options.clone();
    options.accelerator = Accelerator::Kvm;
    let mut command = trial_command("kvm", spec.policy.applies(ConfinementRule::Seccomp), kernel);
    let confinement = Confinement::prepare(spec, &options)
        .map_err(|error| CheckError::NotRun(with_causes(&error)))?;
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
    fn expect_code(self, code: i32) -> Result<(), CheckError> {
        if self.status.code() == Some(code) {
            return Ok(());
        }
        Err(self.failure())
    }

    /// Returns an error unless a kernel was ready to mount its root file system. A CPU that fails before also
    /// resets the machine, which ends QEMU in the same way.
    fn expect_panic(self) -> Result<(), CheckError> {
        if self.status.success() && self.output.contains(PANIC) {
            return Ok(());
        }
        Err(self.failure())
    }

    fn failure(&self) -> CheckError {
        let reason = self.describe();
        if self.status.signal() == Some(SIGKILL) {
            // From the OOM killer or an operator, not from KVM.
            CheckError::NotRun(reason)
        } else {
            CheckError::Unusable(reason)
        }
    }

    fn describe(&self) -> String {
        with_output(
            match self.status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("exit code {}", self.status.code().unwrap_or(255)),
            },
            &self.output,
        )
    }
}

/// Adds what a process has printed to how it has ended.
fn with_output(how: String, output: &str) -> String {
    let mut output = output.trim().to_owned();
    truncate_text(&mut output);
    if output.is_empty() {
        how
    } else {
        format!("{output} ({how})")
    }
}

/// Runs a command that dies with this process. Kills it after the timeout.
fn run(mut command: Command, timeout: Duration) -> Result<Exit, CheckError> {
    let not_run = |error: io::Error| CheckError::NotRun(error.to_string());
    let (output, writer) = io::pipe().map_err(not_run)?;
    // A descendant of the process may keep the pipe open.
    ioctl_fionbio(&output, true).map_err(|error| not_run(error.into()))?;
    command
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(writer.try_clone().map_err(not_run)?))
        .stderr(OwnedFd::from(writer))
        .reset_ignored_signals(true)
        .parent_death_signal(SIGKILL);
    let child = command.spawn();
    let mut child = child.map_err(|error| CheckError::NotRun(with_causes(&error)))?;
    let has_ended = wait_exited(child.pidfd(), Instant::now() + timeout).map_err(not_run)?;
    let no_end = format!("no end within {timeout:?}");
    if !has_ended {
        let _ = child.kill();
        let deadline = Instant::now() + KILL_TIMEOUT;
        if !wait_exited(child.pidfd(), deadline).map_err(not_run)? {
            let output = read_output(output);
            let how = format!("{no_end}, and after SIGKILL");
            return Err(CheckError::Unusable(with_output(how, &output)));
        }
    }
    let status = child.wait().map_err(not_run)?;
    let output = read_output(output);
    if !has_ended {
        return Err(CheckError::Unusable(with_output(no_end, &output)));
    }
    Ok(Exit { status, output })
}

/// Reads what a process has printed. Does not block.
fn read_output(output: PipeReader) -> String {
    let mut text = Vec::new();
    let _ = output.take(MAX_OUTPUT_BYTES).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests;
