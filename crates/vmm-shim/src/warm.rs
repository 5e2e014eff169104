//! A warm shim: a shim that has started and waits for its box.

use std::env;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;

use nix::unistd::dup2_stderr;
use rustix::event::{PollFd, PollFlags};
use vmm_protocol::poll::{is_readable, wait_until};
use vmm_protocol::{
    Assignment, BoxDir, Ending, FailureKind, Invocation, RuntimeProcess, read_line, with_causes,
};

use crate::control::WatchedRuntime;
use crate::exit_reporter::ExitReporter;
use crate::instance::system_error;

/// Waits for a box, and turns this process into what its runtime would have started for that box: it
/// has the current directory, the stderr and the arguments of the shim of the box.
///
/// Returns the runtime. Fails with exit code 0 if the runtime exits, or releases this shim.
pub(crate) fn become_shim_of_box(
    stdin: &mut BufReader<File>,
    reporter: &ExitReporter,
) -> Result<WatchedRuntime, Ending> {
    let assignment = wait(stdin).map_err(system_error("read which box it gets"))?;
    let Some((Assignment { id, dir }, runtime)) = assignment else {
        return Err(Ending::Exited { code: 0 });
    };
    // Before any use of the disk, whose delays are not those of a shim that hangs.
    reporter.report_taken();
    env::set_current_dir(&dir).map_err(system_error("enter the box directory"))?;
    let stderr = BoxDir::new(&dir)
        .open_shim_stderr()
        .map_err(|error| Ending::failed(FailureKind::Storage, with_causes(&error)))?;
    dup2_stderr(stderr)
        .map_err(io::Error::from)
        .map_err(system_error("redirect its stderr"))?;
    // A runtime that finds no record of the shim of a box searches for it by its arguments.
    Invocation::Box { id, dir }
        .replace_arguments()
        .map_err(system_error("replace its arguments"))?;
    Ok(runtime)
}

/// Waits for an assignment. Returns `None` if the runtime has exited or has released this shim.
fn wait(stdin: &mut BufReader<File>) -> io::Result<Option<(Assignment, WatchedRuntime)>> {
    let Some(process) = read_line::<RuntimeProcess>(&mut *stdin)? else {
        return Ok(None);
    };
    let Ok(runtime) = WatchedRuntime::of(process) else {
        return Ok(None);
    };
    let pidfd = runtime.pidfd.as_ref();
    if stdin.buffer().is_empty() && !wait_for_input(stdin.get_ref(), pidfd)? {
        return Ok(None);
    }
    let assignment = read_line(stdin)?;
    Ok(assignment.map(|assignment| (assignment, runtime)))
}

/// Waits until stdin is readable or at its end. Returns false if the runtime exits before: a child
/// that it has forked can hold the pipe open.
fn wait_for_input(stdin: &File, runtime: Option<&OwnedFd>) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(stdin, PollFlags::IN)];
    fds.extend(runtime.map(|runtime| PollFd::new(runtime, PollFlags::IN)));
    while !fds.iter().any(is_readable) {
        wait_until(&mut fds, None)?;
    }
    Ok(!fds[1..].iter().any(is_readable))
}
