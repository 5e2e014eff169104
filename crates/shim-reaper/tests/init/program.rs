//! The program below an init. It is this test binary, because a test runs in a process that has threads
//! already and cannot be split.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use shim_reaper::init::Init;

use crate::common::forks::fork_child;
use crate::common::{as_pid, eventually_blocking, kill, skip};

/// What the program runs: a script, or the name of a function of this module.
const PROGRAM_VAR: &str = "SHIM_TEST_INIT_PROGRAM";
/// The run method, and the options.
const INIT_VAR: &str = "SHIM_TEST_INIT_OPTIONS";

#[used]
// SAFETY: the loader calls each function in this section, before `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = run_program;

extern "C" fn run_program() {
    let Ok(program) = env::var(PROGRAM_VAR) else {
        return;
    };
    let options = env::var(INIT_VAR).unwrap();
    let mut init = Init::new();
    for option in options.split(' ') {
        init = match option {
            "group" => init.forward_to_group(true),
            "stop" => init.stop_remaining(Duration::from_millis(200)),
            "stop-patiently" => init.stop_remaining(Duration::MAX),
            _ => init,
        };
    }
    match options.split(' ').next() {
        Some("run") => init.run().unwrap(),
        Some("if-pid-1") => init.run_if_pid_1().unwrap(),
        _ => {}
    }
    match program.as_str() {
        "print_signals" => print_signals(),
        "make_orphans" => make_orphans(),
        script => panic!("{}", Command::new("sh").args(["-c", script]).exec()),
    }
}

/// Prints the number of each signal that this process receives, until the test has ended.
fn print_signals() {
    let all = SigSet::all();
    all.thread_set_mask().unwrap();
    println!("ready");
    loop {
        // SAFETY: the set is valid for the call, which accepts a null pointer for the information.
        let signal = unsafe { libc::sigwaitinfo(all.as_ref(), std::ptr::null_mut()) };
        if writeln!(io::stdout(), "{signal}").is_err() {
            process::exit(0);
        }
    }
}

/// The number of orphans that [`make_orphans`] makes.
pub const ORPHANS: usize = 3000;

/// Makes orphans that exit at once, then waits for the end of its input.
fn make_orphans() {
    for _ in 0..ORPHANS {
        let child = fork_child(|| {
            fork_child(|| ());
        });
        waitpid(as_pid(child), None).unwrap();
    }
    println!("ready");
    let _ = io::stdin().read_line(&mut String::new());
    process::exit(0);
}

/// How a program is started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// As pid 1 of a pid namespace.
    Container,
    /// With `Init::run`, which makes the init a subreaper.
    Service,
    /// Without an init.
    Bare,
}

impl Place {
    /// Returns the places that have an init: without the permission to create a pid namespace, all but
    /// the container.
    pub fn with_init() -> Vec<Self> {
        let status = Command::new("unshare").args(UNSHARE).arg("true").status();
        if status.is_ok_and(|status| status.success()) {
            return vec![Self::Container, Self::Service];
        }
        skip("the tests in a pid namespace need CAP_SYS_ADMIN");
        vec![Self::Service]
    }

    /// Returns a command that runs a program, with these options of the init.
    pub fn command(self, program: &str, options: &str) -> Command {
        let exe = env::current_exe().unwrap();
        let (mut command, method) = match self {
            Self::Container => {
                let mut command = Command::new("unshare");
                command.args(UNSHARE).arg(exe);
                (command, "if-pid-1")
            }
            Self::Service => (Command::new(exe), "run"),
            Self::Bare => (Command::new(exe), "none"),
        };
        command
            .env(PROGRAM_VAR, program)
            .env(INIT_VAR, format!("{method} {options}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    pub fn start(self, program: &str) -> Started {
        self.start_with(program, "")
    }

    pub fn start_with(self, program: &str, options: &str) -> Started {
        Started::new(self, self.command(program, options))
    }
}

/// The options of unshare(1). It waits for the init, and dies with the same exit code.
const UNSHARE: [&str; 4] = ["--pid", "--fork", "--kill-child", "--mount-proc"];

/// A running program, which is killed when this is dropped.
pub struct Started {
    pub child: Child,
    place: Place,
    output: Lines<BufReader<ChildStdout>>,
}

impl Started {
    pub fn new(place: Place, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            place,
            output,
        }
    }

    /// Returns the next line of the output.
    pub fn line(&mut self) -> String {
        self.output.next().unwrap().unwrap()
    }

    /// Waits for the end, and returns the rest of the output.
    pub fn end(mut self) -> (ExitStatus, Vec<String>) {
        let lines = self.output.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap(), lines)
    }

    /// Returns the exit code.
    pub fn code(self) -> i32 {
        let (status, lines) = self.end();
        status
            .code()
            .unwrap_or_else(|| panic!("{status} {lines:?}"))
    }

    /// Returns the pid of the init.
    pub fn init(&self) -> u32 {
        match self.place {
            Place::Container => only_child(self.child.id()),
            Place::Service => self.child.id(),
            Place::Bare => panic!("no init"),
        }
    }

    /// Returns the pid of the program, whose init has no other child.
    pub fn program(&self) -> u32 {
        only_child(self.init())
    }

    pub fn signal_init(&self, signal: Signal) {
        kill(self.init(), signal);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn only_child(pid: u32) -> u32 {
    eventually_blocking("the process has one child", || children(pid).len() == 1);
    children(pid)[0]
}
