//! How likely the kernel is to kill a process for lack of memory: `oom_score_adj`, `proc_pid_oom_score_adj(5)`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::parent_id;
use std::process;

use vmm_protocol::procfs;

use crate::error::ShimError;

const MAX_SCORE: i32 = 1000;

/// Sets the score of this process and of those that it starts to one above that of its parent, as the shim of runc does:
/// containerd, which its unit protects, is killed last.
pub(crate) fn raise_above_parent() -> Result<(), ShimError> {
    let path = format!("/proc/{}/oom_score_adj", parent_id());
    let score = fs::read_to_string(&path).and_then(|text| {
        let score = text.trim().parse::<i32>();
        score.map_err(io::Error::other)
    });
    let score = score.map_err(ShimError::file("read", path))?;
    set_tree(process::id(), (score + 1).min(MAX_SCORE))
}

/// Sets the score of a process and of its descendants.
pub(crate) fn set_tree(pid: u32, score: i32) -> Result<(), ShimError> {
    let tree =
        || procfs::process_tree(pid).map_err(ShimError::file("list the processes in", "/proc"));
    let open = |pid| Some((pid, File::open(format!("/proc/{pid}")).ok()?));
    let dirs: Vec<_> = tree()?.into_iter().filter_map(open).collect();
    // Another process can have the pid of one that ended before its directory was opened.
    let current = tree()?;
    for (pid, dir) in dirs.iter().filter(|(pid, _)| current.contains(pid)) {
        let path = format!("/proc/self/fd/{}/oom_score_adj", dir.as_raw_fd());
        match fs::write(path, score.to_string()) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written.map_err(ShimError::file(
                "write",
                format!("/proc/{pid}/oom_score_adj"),
            ))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_descendants_of_a_process_have_its_score() {
        let script = "exec 3<&0; (echo; read line <&3) & wait";
        let mut shell = Command::new("sh");
        let mut shell = shell
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        set_tree(shell.id(), 321).unwrap();
        let tree = procfs::process_tree(shell.id()).unwrap();
        assert!(tree.len() > 1);
        for pid in tree {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), "321");
        }
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}
