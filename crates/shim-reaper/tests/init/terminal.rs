//! The program is in the foreground of the terminal, and a shell can stop and continue it.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::libc;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::Signal::{SIGCONT, SIGINT, SIGTSTP, SIGUSR1};
use nix::sys::signal::{SigHandler, signal};
use nix::unistd::setsid;

use crate::common::{eventually_blocking, kill, state_of};
use crate::program::{Place, Started, children};

/// Makes the process that `command` starts the leader of a session with a terminal of its own, and
/// returns the other end of the terminal.
fn give_terminal(command: &mut Command) -> File {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    command.stdin(Stdio::from(slave));
    // SAFETY: the closure makes system calls only, and installs no handler.
    unsafe {
        command.pre_exec(|| {
            // The background jobs of a script ignore it, and a shell cannot trap what it ignores at its
            // start.
            signal(SIGINT, SigHandler::SigDfl)?;
            setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    File::from(master)
}

/// Returns the foreground process group of the terminal of a process.
fn foreground_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(5);
    fields.unwrap().parse().unwrap()
}

#[test]
fn the_program_is_in_the_foreground_and_gets_signals_of_the_terminal_once() {
    for place in Place::with_init() {
        let mut command = place.command("print_signals", "");
        let mut terminal = give_terminal(&mut command);
        let mut started = Started::new(place, command);
        started.line();
        let program = started.program();
        assert_eq!(foreground_of(program), program, "{place:?}");
        terminal.write_all(b"\x03").unwrap();
        assert_eq!(started.line(), (SIGINT as i32).to_string(), "{place:?}");
        // A second SIGINT would come before this one.
        started.signal_init(SIGUSR1);
        assert_eq!(started.line(), (SIGUSR1 as i32).to_string(), "{place:?}");
    }
}

#[test]
fn the_program_stops_and_continues_with_forwarded_signals() {
    for place in Place::with_init() {
        let mut started = place.start("echo ready; exec sleep 1000");
        started.line();
        let (init, program) = (started.init(), started.program());
        kill(init, SIGTSTP);
        eventually_blocking("the program stops", || state_of(program) == Some('T'));
        kill(init, SIGCONT);
        eventually_blocking("the program runs", || state_of(program) != Some('T'));
    }
}

#[test]
fn a_shell_notices_that_the_program_stops_and_continues_it_in_the_foreground() {
    let script = "trap 'kill $!; echo INT; exit 5' INT; sleep 1000 >/dev/null & echo ready; wait";
    let program = Place::Service.command(script, "");
    let variables = program.get_envs();
    let mut shell = Command::new("sh");
    shell
        .args([
            "-m",
            "-c",
            "\"$EXE\"; echo stopped; fg >/dev/null; echo ended $?",
        ])
        .env("EXE", env::current_exe().unwrap())
        .envs(variables.filter_map(|(name, value)| Some((name, value?))))
        .stdout(Stdio::piped());
    let mut terminal = give_terminal(&mut shell);
    // The shell is in the place of the init, as far as the processes below it go.
    let mut started = Started::new(Place::Service, shell);
    assert_eq!(started.line(), "ready");
    let init = started.program();
    let program = children(init)[0];
    terminal.write_all(b"\x1a").unwrap();
    assert_eq!(started.line(), "stopped");
    let group = [program, children(program)[0]];
    eventually_blocking(
        "the program is in the foreground, and its group runs",
        || foreground_of(program) == program && group.iter().all(|pid| state_of(*pid) != Some('T')),
    );
    terminal.write_all(b"\x03").unwrap();
    let (_, lines) = started.end();
    assert_eq!(lines, ["INT", "ended 5"]);
}
