//! Process groups, as `/proc` shows them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::libc;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;

/// Returns the processes in a process group that have not exited.
pub fn running_members(pgid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_running_member(*pid, pgid).unwrap_or(false))
        .collect()
}

fn is_running_member(pid: u32, pgid: u32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let is_running = !matches!(fields.next()?, "Z" | "X");
    Some(is_running && fields.nth(1)?.parse() == Ok(pgid))
}

/// The length of a chain that is not killed.
const MAX_LINKS: usize = 30_000;

/// Returns a command that starts chains of processes, each of which ignores SIGTERM, writes a byte
/// to stdout, forks the next one and exits.
pub fn fork_chains(chains: usize) -> Command {
    let mut command = super::sleeper();
    command.stdout(Stdio::piped());
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            for _ in 0..chains {
                if libc::fork() == 0 {
                    // std waits until the socket is closed through which the child reports errors,
                    // and a test that fails does not wait for the chain.
                    libc::syscall(libc::SYS_close_range, 2, u32::MAX, 0);
                    for _ in 0..MAX_LINKS {
                        if libc::fork() > 0 {
                            break;
                        }
                        libc::write(1, c"x".as_ptr().cast(), 1);
                        libc::usleep(300);
                    }
                    libc::_exit(0);
                }
            }
            Ok(())
        })
    };
    command
}

/// Waits until the chains of [`fork_chains`] have grown by `count` processes.
pub async fn await_growth(stdout: &mut ChildStdout, count: usize) {
    let mut written = vec![0; count];
    stdout.read_exact(&mut written).await.unwrap();
}

/// Waits until no process has the pipe as its stdout, and checks that no chain has come to its end.
pub async fn await_end(stdout: &mut ChildStdout) {
    let mut written = Vec::new();
    stdout.read_to_end(&mut written).await.unwrap();
    assert!(written.len() < MAX_LINKS, "a chain was not killed");
}
