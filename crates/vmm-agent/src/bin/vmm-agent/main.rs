//! The agent of a guest: its pid 1.
//!
//! Mounts what every program expects, loads the modules of the initrd, enters the root file system,
//! and runs commands for the host at the other end of the serial port `org.vmm.agent.0`. Powers the
//! guest off when the host requests it, or at SIGINT, SIGTERM or SIGUSR2.
//!
//! `vmm-agent --put` and `--get` are the processes of file transfers, which the agent starts.
//! `vmm-agent container` runs the processes of containers in a guest.
//! `vmm-agent connect` connects its stdin and stdout to a TCP port of the guest.
//! `vmm-agent --stdin` does not prepare a guest, and serves the host at the other end of its stdin.

#![forbid(unsafe_code)]

mod backend;
mod boot;
mod connect;
mod container;
mod error;
mod init;
mod kernel_command_line;
mod mounts;
mod network;
mod oom_log;
mod port;
mod root;
mod stats;
mod transfer;
mod users;

use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::process::{self, ExitCode};
use std::sync::Arc;

use vmm_agent::Children;
use vmm_protocol::with_causes;

use backend::{GuestBackend, Shutdown};
use error::AgentError;
use init::Init;

/// The exit code of every Rust program that panics.
const PANIC_CODE: i32 = 101;

fn main() -> ExitCode {
    if let Some(code) = transfer::run_if_requested() {
        return code;
    }
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    if command == "container" {
        return container::main(args);
    }
    if command == "connect" {
        return connect::main(args);
    }
    exit_on_panic();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In a guest, the console. The kernel then panics, because its pid 1 ends.
            eprintln!("vmm-agent: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Ends the agent when one of its threads panics: the others alone do not serve a guest. The kernel of the guest
/// then panics, which its host reports.
fn exit_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        process::exit(PANIC_CODE);
    }));
}

fn run() -> Result<(), AgentError> {
    let children = Children::new().map_err(AgentError::system("create an eventfd"))?;
    let children = Arc::new(children);
    let shutdown = Arc::new(Shutdown::default());
    // Before the thread of the server starts, which inherits the signal mask.
    let init = Init::new(Arc::clone(&children), Arc::clone(&shutdown))?;
    let serves_stdin = std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "--stdin");
    let (port, phases) = if serves_stdin {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let stdin = stdin.map_err(AgentError::system("duplicate stdin"))?;
        (stdin, Vec::new())
    } else if boot::is_guest() {
        boot::boot()?
    } else {
        return Err(AgentError::NotGuest);
    };
    let backend = GuestBackend::new(phases, shutdown);
    let served = port::serve(port, !serves_stdin, backend, children)?;
    init.run();
    init.end_processes();
    if !serves_stdin {
        // First the data: a host that reads nothing, or loses patience, must not cost any.
        init::write_disks();
    }
    // The server sends what the commands have written last.
    let _ = served.recv_timeout(init::FLUSH_TIMEOUT);
    if !serves_stdin {
        init::power_off();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Set in a process of this test that stands for the agent.
    const IS_AGENT: &str = "VMM_AGENT_TEST_PANIC";

    #[test]
    fn a_panic_of_any_thread_ends_the_agent() {
        if env::var_os(IS_AGENT).is_some() {
            exit_on_panic();
            let server = thread::spawn(|| panic!("the server"));
            server.join().unwrap_err();
            return;
        }
        let mut agent = Command::new(env::current_exe().unwrap());
        agent.args(["--exact", "tests::a_panic_of_any_thread_ends_the_agent"]);
        let output = agent.args(["--nocapture"]).env(IS_AGENT, "").output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(PANIC_CODE), "{output:?}");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(messages.contains("the server"), "{messages}");
    }
}
