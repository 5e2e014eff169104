use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::c_strings::{CStringArray, CStrings, NulByte};

/// What `execvp(3)` of glibc searches when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Returns the paths at which the child looks for the program, in order.
///
/// The child tries them, not the parent: it may see another root, working directory or user.
pub(crate) fn candidates(program: &OsStr, path: Option<&OsStr>) -> Result<CStringArray, NulByte> {
    let program = program.as_bytes();
    let mut candidates = CStrings::default();
    if program.is_empty() || program.contains(&b'/') {
        candidates.push(&[program])?;
        return Ok(candidates.freeze());
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes();
    for dir in path.split(|&byte| byte == b':') {
        // An empty entry is the working directory.
        let separator: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        candidates.push(&[dir, separator, program])?;
    }
    Ok(candidates.freeze())
}
