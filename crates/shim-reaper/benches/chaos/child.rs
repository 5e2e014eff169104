use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use shim_reaper::{Pidfd, ShimExit, ShimHandle};

use crate::random::Random;

/// How a child is going to end, decided before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Code(i32),
    Signal(i32),
    /// It runs until it is killed.
    Killed,
}

impl Fate {
    pub(crate) fn random(random: &mut Random) -> Self {
        match random.one_in(4) {
            true => Self::Signal(random.pick(&[1, 6, 9, 10, 15])),
            false => Self::Code(random.below(256) as i32),
        }
    }

    pub(crate) fn is(self, status: ExitStatus) -> bool {
        match self {
            Self::Code(code) => status.code() == Some(code),
            Self::Signal(signal) => status.signal() == Some(signal),
            Self::Killed => status.signal() == Some(9),
        }
    }

    fn script(self, random: &mut Random) -> String {
        let nap = match random.below(3) {
            0 => String::new(),
            _ => format!("sleep 0.{:03};", random.below(60)),
        };
        match self {
            Self::Code(code) => format!("{nap} exit {code}"),
            Self::Signal(signal) => format!("{nap} kill -{signal} $$"),
            Self::Killed => "exec sleep 1000".to_owned(),
        }
    }

    pub(crate) fn command(self, random: &mut Random) -> Command {
        shell(&self.script(random))
    }

    /// Leaves a process in its group that outlives it.
    pub(crate) fn command_with_orphan(self, random: &mut Random) -> Command {
        let nap = random.below(60);
        shell(&format!("sleep 0.{nap:03} & {}", self.script(random)))
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

/// A child with a child of its own, of that fate, and the pid of the latter.
pub(crate) fn parent_of(fate: Fate, random: &mut Random) -> (Child, u32) {
    let mut command = shell(r#"sh -c "$0" >/dev/null & echo $!; wait $!; exit 3"#);
    let mut parent = command
        .arg(fate.script(random))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = parent.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    (parent, line.trim().parse().unwrap())
}

/// A registered process, and what is expected of it.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) pid: u32,
    pub(crate) fate: Fate,
    /// Another process may wait for it first, and the kernel may not keep its status.
    pub(crate) may_be_unknown: bool,
    pub(crate) attached: bool,
    pub(crate) handle: Option<ShimHandle>,
}

impl Registered {
    pub(crate) fn ended_as(&self, exit: &ShimExit) -> bool {
        let known = exit.status.map(|status| self.fate.is(status));
        exit.pid == self.pid && known.unwrap_or(self.may_be_unknown)
    }
}

/// A thread that waits for its own child, as code that knows no reaper does.
pub(crate) struct Owner(JoinHandle<bool>);

impl Owner {
    pub(crate) fn of(mut child: Child, fate: Fate) -> Self {
        Self(thread::spawn(move || {
            child.wait().is_ok_and(|status| fate.is(status))
        }))
    }

    pub(crate) fn has_waited(&self) -> bool {
        self.0.is_finished()
    }

    pub(crate) fn got_the_status(self) -> bool {
        self.0.join().unwrap()
    }
}

/// Whether a pidfd reports the exit status after another wait has reaped the process.
pub(crate) fn kernel_keeps_statuses() -> bool {
    let mut child = shell("exit 7").spawn().unwrap();
    let pidfd = Pidfd::open(child.id());
    child.wait().unwrap();
    pidfd.is_ok_and(|pidfd| pidfd.exit_status().is_some())
}
