use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use vmm_protocol::procfs::Stat;

/// The pause before the second look at a zombie. Each later pause is twice as long.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// How long a parent that works may take to reap a child.
const SLOW: Duration = Duration::from_millis(5);

const TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for dead shims to disappear from `/proc`.
///
/// This process reaps its own children at once, or after the grace period of an owner. Another
/// process may take its time or never do it, and a dead shim is dead all the same: once one of them
/// was slow, no later call waits for another process.
#[derive(Debug, Default)]
pub(crate) struct ReapWait {
    are_others_slow: AtomicBool,
}

impl ReapWait {
    /// Waits until the process is not a zombie, unless that is up to a slow parent. Returns false
    /// after [`TIMEOUT`].
    pub(crate) async fn wait(&self, pid: u32) -> bool {
        let waits_for_others = !self.are_others_slow.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut pause = MIN_PAUSE;
        while let Some(parent) = parent_of_zombie(pid) {
            let is_other = parent != process::id();
            if is_other && !waits_for_others {
                return true;
            }
            if is_other && start.elapsed() >= SLOW {
                self.are_others_slow.store(true, Ordering::Relaxed);
            }
            if start.elapsed() >= TIMEOUT {
                return false;
            }
            sleep(pause).await;
            pause *= 2;
        }
        true
    }
}

/// Returns the parent of the process if it is a zombie.
fn parent_of_zombie(pid: u32) -> Option<u32> {
    let stat = Stat::of(pid).ok().flatten()?;
    stat.is_zombie().then_some(stat.parent)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::thread;

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
            name.unwrap() == "sleep\n" && parent_of_zombie(zombie).is_some()
        };
        while !is_careless() {
            thread::sleep(Duration::from_millis(1));
        }
        (parent, zombie)
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_zombie_of_another_process_is_awaited() {
        let (mut parent, zombie) = careless_parent();
        let wait = ReapWait::default();
        let start = Instant::now();
        assert!(!wait.wait(zombie).await);
        // By the clock of tokio, which is paused.
        assert!(start.elapsed() >= TIMEOUT);
        let start = Instant::now();
        assert!(wait.wait(zombie).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
        // A child of this process is awaited all the same.
        let mut child = Command::new("true").spawn().unwrap();
        while parent_of_zombie(child.id()).is_none() {
            thread::yield_now();
        }
        assert!(!wait.wait(child.id()).await);
        child.wait().unwrap();
        assert!(wait.wait(child.id()).await);
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
