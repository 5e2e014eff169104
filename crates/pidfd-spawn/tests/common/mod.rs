//! Helpers that the tests share.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    dead_code, // Each test file uses a different part.
    missing_debug_implementations,
    unreachable_pub,
    unsafe_code
)]

pub mod own_process;
pub mod seccomp;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::hint;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};
use pidfd_spawn::Command;

/// The time limit of every wait. Only a failing test reaches it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A user and group that are not those of the tests.
pub const OTHER_USER: u32 = 54_321;

/// Waits until `condition` holds; `what` describes it in the message of a failure.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

/// Returns what the command writes to its standard output, without the last newline.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    stdout.trim_end_matches('\n').to_owned()
}

/// The lines of `/proc/self/status`, as a child with the settings of a command sees them.
pub fn status_of(set_up: impl FnOnce(&mut Command)) -> HashMap<String, String> {
    let mut command = Command::new("/bin/cat");
    command.arg("/proc/self/status");
    set_up(&mut command);
    stdout_of(&mut command)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// The fields of `/proc/self/stat`, numbered as in `proc(5)`, of a child with the settings of a
/// command.
pub fn stat_of(set_up: impl FnOnce(&mut Command)) -> Vec<String> {
    let mut command = Command::new("/bin/cat");
    command.arg("/proc/self/stat");
    set_up(&mut command);
    [String::new()]
        .into_iter()
        .chain(stdout_of(&mut command).split(' ').map(str::to_owned))
        .collect()
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Reports that a test cannot test here. Fails in CI, where it must.
pub fn skip(why: &str) {
    assert!(env::var_os("CI").is_none(), "cannot test: {why}");
    eprintln!("SKIPPED: {why}");
}

/// The state of a process, or `None` if there is no process with this pid.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')').unwrap() + 2..].chars().next()
}

pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The children of a thread.
pub fn children_of(pid: u32, tid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// All children of this process, zombies included.
pub fn own_children() -> Vec<u32> {
    let own_pid = std::process::id();
    fs::read_dir("/proc/self/task")
        .unwrap()
        .flat_map(|task| {
            let tid = task.unwrap().file_name().into_string().unwrap();
            children_of(own_pid, tid.parse().unwrap())
        })
        .collect()
}

/// The numbers of the descriptors that this process has open.
pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Writes to memory, makes the call and writes to the memory again. Returns how many page faults that
/// takes: after a fork, one for each page.
pub fn write_faults_after(pages: usize, call: impl FnOnce()) -> usize {
    const PAGE: usize = 4096;
    let mut memory = vec![0_u8; pages * PAGE];
    // With huge pages there are fewer faults.
    let start = memory.as_ptr().align_offset(PAGE);
    // SAFETY: changes how the kernel maps the memory, not what it contains.
    unsafe {
        let start = memory.as_mut_ptr().add(start);
        libc::madvise(start.cast(), (pages - 1) * PAGE, libc::MADV_NOHUGEPAGE);
    }
    let mut write = || {
        memory.iter_mut().step_by(PAGE).for_each(|byte| *byte += 1);
        hint::black_box(&mut memory);
    };
    let faults = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        usize::try_from(usage.minor_page_faults()).unwrap()
    };
    write();
    call();
    let before = faults();
    write();
    faults() - before
}

pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

pub fn ignore(signal: libc::c_int) {
    // SAFETY: changes a disposition of this process to a constant.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A thread that repeats a call until this is dropped.
pub struct Repeat {
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Repeat {
    pub fn start(mut call: impl FnMut() + Send + 'static) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_done = is_done.clone();
            move || {
                while !is_done.load(Ordering::Relaxed) {
                    call();
                }
            }
        });
        Self {
            is_done,
            thread: Some(thread),
        }
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
