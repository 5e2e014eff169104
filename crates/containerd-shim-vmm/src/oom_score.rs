//! How likely the kernel is to kill a process for lack of memory: `oom_score_adj`, `proc_pid_oom_score_adj(5)`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::parent_id;
use std::process;

use vmm_protocol::procfs;

use crate::error::ShimError;
use crate::log;

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

/// Sets the score of a process and of its descendants. They keep a higher score where this process lacks `CAP_SYS_RESOURCE`,
/// which is needed to lower it, and a line in the log reports that.
pub(crate) fn set_tree(pid: u32, score: i32) -> Result<(), ShimError> {
    let tree =
        || procfs::process_tree(pid).map_err(ShimError::file("list the processes in", "/proc"));
    let open = |pid| Some((pid, File::open(format!("/proc/{pid}")).ok()?));
    let dirs: Vec<_> = tree()?.into_iter().filter_map(open).collect();
    // Another process can have the pid of one that ended before its directory was opened.
    let current = tree()?;
    let mut is_refused = false;
    for (pid, dir) in dirs.iter().filter(|(pid, _)| current.contains(pid)) {
        let path = format!("/proc/self/fd/{}/oom_score_adj", dir.as_raw_fd());
        match fs::write(path, score.to_string()) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_refused = true,
            written => written.map_err(ShimError::file(
                "write",
                format!("/proc/{pid}/oom_score_adj"),
            ))?,
        }
    }
    if is_refused {
        log(format_args!(
            "processes keep a higher oom_score_adj than {score}: this program lacks CAP_SYS_RESOURCE"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn the_descendants_of_a_process_have_its_score() {
        let mut shell = start_shell_with_a_child();
        set_tree(shell.id(), 321).unwrap();
        let scores = scores(shell.id());
        assert!(scores.len() > 1);
        assert!(scores.iter().all(|score| score == "321"), "{scores:?}");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn a_process_that_may_not_lower_the_score_keeps_it() {
        let mut shell = start_shell_with_a_child();
        let before = scores(shell.id());
        let lowered = vec!["-999".to_owned(); before.len()];
        set_tree(shell.id(), -999).unwrap();
        let after = scores(shell.id());
        assert!(after == before || after == lowered, "{after:?}");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    fn start_shell_with_a_child() -> Child {
        let script = "exec 3<&0; (echo; read line <&3) & wait";
        let mut shell = Command::new("sh");
        let mut shell = shell
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        shell
    }

    fn scores(pid: u32) -> Vec<String> {
        let tree = procfs::process_tree(pid).unwrap();
        let score = |pid| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        tree.into_iter()
            .map(|pid| score(pid).trim().to_owned())
            .collect()
    }
}
