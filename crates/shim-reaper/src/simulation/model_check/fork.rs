//! Forks processes on both kernels.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::{Kernels, Process};
use crate::kernel::simulated::Parent;

/// Exits with the code that it reads.
const CHILD: &str = "read code; exit $code";

/// Also starts a child of its own, which reads its code from the descriptor 2, and prints its pid.
const PARENT: &str = "(read code <&2; exit $code) & echo $!; exec >&-; read code; exit $code";

impl Kernels<'_> {
    pub(super) fn fork(&mut self) -> u32 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        let child = command.args(["-c", CHILD]).stdin(OwnedFd::from(theirs));
        let pid = child.spawn().unwrap().id();
        let index = self.simulated.fork(pid);
        self.add(pid, index, ours, None);
        pid
    }

    /// Returns the pids of a child and of its child.
    pub(super) fn fork_parent(&mut self) -> (u32, u32) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours_of_child, theirs_of_child) = UnixStream::pair().unwrap();
        let mut parent = Command::new("sh")
            .args(["-c", PARENT])
            .stdin(OwnedFd::from(theirs))
            .stderr(OwnedFd::from(theirs_of_child))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(parent.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let child = line.trim().parse().unwrap();
        let pid = parent.id();
        let parent = self.simulated.fork(pid);
        self.add(pid, parent, ours, None);
        let index = self.simulated.add(child, Parent::Process(parent), None);
        self.add(child, index, ours_of_child, Some(parent));
        (pid, child)
    }

    fn add(&mut self, pid: u32, index: usize, commands: UnixStream, parent: Option<usize>) {
        let process = Process {
            pid,
            index,
            commands,
            parent,
            pidfds: None,
            token: u64::from(pid),
            watched: false,
            owned: false,
        };
        self.processes.insert(pid, process);
    }
}
