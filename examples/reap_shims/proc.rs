//! What `/proc` says of processes.

use std::fs;
use std::io;

/// The state letter of a process; `None` when it is gone.
pub fn state_of(pid: u32) -> Option<char> {
    read_stat(pid).map(|(state, _)| state)
}

pub fn zombie_children() -> io::Result<Vec<u32>> {
    let me = std::process::id();
    let mut zombies = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && read_stat(pid) == Some(('Z', me))
        {
            zombies.push(pid);
        }
    }
    Ok(zombies)
}

/// State and parent.
fn read_stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses included.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}
