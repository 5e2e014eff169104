use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use shim_reaper::{Pidfd, ShimExit, ShimHandle};

use crate::census;
use crate::random::Random;

/// How a child will end. Chosen before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Code(i32),
    Signal(i32),
    /// It sleeps until it is killed or stopped.
    Killed,
}

impl Fate {
    pub(crate) const SIGNALS: [i32; 5] = [1, 6, 9, 10, 15];

    pub(crate) fn random(random: &mut Random) -> Self {
        if random.one_in(4) {
            Self::Signal(random.pick(&Self::SIGNALS))
        } else {
            Self::Code(random.below(256) as i32)
        }
    }

    pub(crate) fn matches(self, status: ExitStatus) -> bool {
        match self {
            Self::Code(code) => status.code() == Some(code),
            Self::Signal(signal) => status.signal() == Some(signal),
            Self::Killed => matches!(status.signal(), Some(9 | 15)),
        }
    }

    fn script(self, random: &mut Random) -> String {
        let sleep = if random.one_in(3) {
            String::new()
        } else {
            format!("sleep 0.{:03};", random.below(60))
        };
        match self {
            Self::Code(code) => format!("{sleep} exit {code}"),
            Self::Signal(signal) => format!("{sleep} kill -{signal} $$"),
            Self::Killed => "exec sleep 1000".to_owned(),
        }
    }

    pub(crate) fn command(self, random: &mut Random) -> Command {
        shell(&self.script(random))
    }

    /// Returns a command that leaves an orphan in its process group.
    pub(crate) fn command_with_orphan(self, random: &mut Random) -> Command {
        let millis = random.below(60);
        shell(&format!("sleep 0.{millis:03} & {}", self.script(random)))
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Starts a child, as soon as there are free descriptors.
pub(crate) fn spawn(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            // With a low limit, glibc also fails with EBADF.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::EBADF)) => {
                thread::sleep(Duration::from_millis(1));
            }
            child => return child.unwrap(),
        }
    }
}

/// Starts a child that starts a grandchild with this fate. Returns the child and the pid of the
/// grandchild.
pub(crate) fn spawn_parent(fate: Fate, random: &mut Random) -> (Child, u32) {
    let mut command = shell(r#"sh -c "$0" >/dev/null & echo $!; wait $!; exit 3"#);
    command.arg(fate.script(random)).stdout(Stdio::piped());
    let mut parent = spawn(&mut command);
    let mut line = String::new();
    let stdout = parent.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    (parent, line.trim().parse().unwrap())
}

/// The option that makes this program trace a process.
pub(crate) const TRACE_OPTION: &str = "--trace";

/// Starts a process that traces another one until its stdin is closed, and never waits for it.
/// Returns `None` where tracing is not permitted.
pub(crate) fn spawn_tracer(pid: u32) -> Option<(Child, ChildStdin)> {
    // Not by its path: a build may replace the file.
    let mut tracer = Command::new("/proc/self/exe")
        .args([TRACE_OPTION, &pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = tracer.stdin.take().unwrap();
    let mut stdout = tracer.stdout.take().unwrap();
    let is_tracing = stdout.read_exact(&mut [0]).is_ok();
    if !is_tracing {
        let _ = tracer.wait();
    }
    is_tracing.then_some((tracer, stdin))
}

/// Traces a process until stdin is closed.
pub(crate) fn trace(pid: u64) -> ExitCode {
    let pid = Pid::from_raw(pid.try_into().unwrap());
    if ptrace::seize(pid, ptrace::Options::empty()).is_err() {
        return ExitCode::FAILURE;
    }
    println!("tracing");
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

/// A registered process, and its expected exit.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) pid: u32,
    pub(crate) fate: Fate,
    /// Whether another wait may reap it first on a kernel that does not keep its status.
    pub(crate) may_be_unknown: bool,
    pub(crate) attached: bool,
    pub(crate) handle: Option<ShimHandle>,
}

impl Registered {
    pub(crate) fn matches(&self, exit: &ShimExit) -> bool {
        let status_matches = exit.status.map(|status| self.fate.matches(status));
        exit.pid == self.pid && status_matches.unwrap_or(self.may_be_unknown)
    }
}

/// A thread that waits for its own child, like code that does not use a reaper.
pub(crate) struct Owner {
    fate: Fate,
    /// Ends with the status, or with `None` if the wait failed.
    thread: JoinHandle<Option<ExitStatus>>,
}

impl Owner {
    /// With a `delay`, the owner waits that long after the child has exited.
    pub(crate) fn start(mut child: Child, fate: Fate, delay: Option<Duration>) -> Self {
        let thread = thread::spawn(move || {
            if let Some(delay) = delay {
                census::wait_until(|| !census::is_running(child.id()));
                thread::sleep(delay);
            }
            child.wait().ok()
        });
        Self { fate, thread }
    }

    /// An owner that knows the pid only, and waits at once.
    pub(crate) fn of_pid(pid: u32, code: i32) -> Self {
        let thread = thread::spawn(move || {
            let pid = Pid::from_raw(pid.try_into().unwrap());
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
                _ => None,
            }
        });
        Self {
            fate: Fate::Code(code),
            thread,
        }
    }

    pub(crate) fn has_waited(&self) -> bool {
        self.thread.is_finished()
    }

    /// Returns whether the owner got the status of its child, which `may_be_stopped` allows to be
    /// that of a stopped child.
    pub(crate) fn got_true_status(self, may_be_stopped: bool) -> bool {
        let fates = [Some(self.fate), may_be_stopped.then_some(Fate::Killed)];
        let status = self.thread.join().unwrap();
        status.is_some_and(|status| fates.iter().flatten().any(|fate| fate.matches(status)))
    }
}

/// Returns whether a pidfd reports the exit status after another wait has reaped the process.
pub(crate) fn kernel_keeps_statuses() -> bool {
    let mut child = shell("exit 7").spawn().unwrap();
    let pidfd = Pidfd::open(child.id());
    child.wait().unwrap();
    pidfd.is_ok_and(|pidfd| pidfd.exit_status().is_some())
}
