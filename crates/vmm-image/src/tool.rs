use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use crate::BuildError;

/// How much of the messages of a program an error shows.
const MAX_LINES: usize = 4;

/// Creates the command of a program of the host, which is also searched where administrators have
/// their programs.
pub(crate) fn command(program: &'static str) -> Command {
    let mut path = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path).stdin(Stdio::null());
    command
}

/// Runs a program of the host, and returns its stdout.
pub(crate) fn run(
    program: &'static str,
    package: &'static str,
    command: &mut Command,
) -> Result<Vec<u8>, BuildError> {
    let output = command.output().map_err(|source| BuildError::ToolMissing {
        program,
        package,
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = stderr.trim().lines().take(MAX_LINES).collect();
    let stderr = lines.join("; ");
    Err(BuildError::ToolFailed {
        program,
        stderr: if stderr.is_empty() {
            output.status.to_string()
        } else {
            stderr
        },
    })
}
