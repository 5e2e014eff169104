use std::process;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use vmm_protocol::procfs::Stat;

/// The pause before the second look at a zombie. Each later pause is twice as long.
const MIN_PAUSE: Duration = Duration::from_millis(1);

const TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until a dead shim is not a zombie child of this process, which may reap it only after the
/// grace period of an owner. Does not wait for another parent, which may never reap it. Returns
/// false after [`TIMEOUT`].
pub(crate) async fn wait_until_reaped(pid: u32) -> bool {
    let start = Instant::now();
    let mut pause = MIN_PAUSE;
    while is_own_zombie(pid) {
        if start.elapsed() >= TIMEOUT {
            return false;
        }
        sleep(pause).await;
        pause *= 2;
    }
    true
}

/// Returns whether the process is a zombie that only this process can reap.
pub(super) fn is_own_zombie(pid: u32) -> bool {
    let stat = Stat::of(pid).ok().flatten();
    stat.is_some_and(|stat| stat.is_zombie() && stat.parent == process::id())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::thread;

    use vmm_protocol::procfs;

    use super::*;

    /// Starts a process that does not reap its child, a zombie with the returned pid.
    fn careless_parent() -> (Child, u32) {
        let mut parent = Command::new("sh")
            // The child ends after the shell, which would reap it, has become `sleep`.
            .args(["-c", "sleep 1 & echo $!; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = parent.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let zombie = line.trim().parse().unwrap();
        let is_careless = || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", parent.id()));
            name.unwrap() == "sleep\n" && procfs::is_zombie(zombie)
        };
        while !is_careless() {
            thread::sleep(Duration::from_millis(1));
        }
        (parent, zombie)
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_child_of_this_process_is_awaited() {
        let (mut parent, zombie) = careless_parent();
        let start = Instant::now();
        assert!(wait_until_reaped(zombie).await);
        // By the clock of tokio, which is paused.
        assert_eq!(start.elapsed(), Duration::ZERO);
        let mut child = Command::new("true").spawn().unwrap();
        while !is_own_zombie(child.id()) {
            thread::yield_now();
        }
        assert!(!wait_until_reaped(child.id()).await);
        child.wait().unwrap();
        assert!(wait_until_reaped(child.id()).await);
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
