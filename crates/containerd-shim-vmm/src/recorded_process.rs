//! Processes that are known from a record.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::{Instant, sleep};
use vmm_protocol::{PidLookup, PidRecord, pidfd};

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns whether a process has ended. One that cannot be looked up, for example while no descriptor is free, has not.
pub(crate) fn has_ended(process: &PidRecord) -> bool {
    let found = process.lookup();
    found.is_ok_and(|found| matches!(found, PidLookup::NotFound | PidLookup::Reused))
}

/// Kills a process, and waits until it has ended, at most for the time `limit`. Never signals another process that has its
/// pid. Returns whether it has ended.
///
/// # Errors
///
/// If the process cannot be identified or signalled.
pub(crate) async fn kill(process: &PidRecord, limit: Duration) -> io::Result<bool> {
    // Opened before the lookup: it stays that of the process which is looked up.
    let pidfd = match pidfd::open(process.pid) {
        Ok(Some(pidfd)) => pidfd,
        Ok(None) => return Err(io::ErrorKind::Unsupported.into()),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(true),
        Err(error) => return Err(error),
    };
    match process.lookup()? {
        PidLookup::Alive(_) => {}
        PidLookup::NotFound | PidLookup::Reused => return Ok(true),
        PidLookup::Unverified(_) => return Ok(false),
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + limit;
    while !pidfd::has_exited(&pidfd) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn start() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[tokio::test]
    async fn a_recorded_process_is_killed_and_another_with_its_pid_is_not() {
        let mut child = start();
        let record = PidRecord::of(child.id()).unwrap().unwrap();
        let mut earlier = record.clone();
        let identity = earlier.identity.as_mut().unwrap();
        identity.start_time += 1;
        identity.pidfd_inode = identity.pidfd_inode.map(|inode| inode + 1);
        assert!(kill(&earlier, LIMIT).await.unwrap());
        let unverified = PidRecord {
            identity: None,
            ..record.clone()
        };
        assert!(!kill(&unverified, LIMIT).await.unwrap());
        assert!(child.try_wait().unwrap().is_none());
        assert!(kill(&record, LIMIT).await.unwrap());
        child.wait().unwrap();
        assert!(kill(&record, LIMIT).await.unwrap());
    }
}
