use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{EPIPE, O_NONBLOCK};

/// How many kills are kept until the server asks for them.
const MAX_KILLS: usize = 64;

/// How long after the kill of a process its record may appear in the log.
const LOG_TIMEOUT: Duration = Duration::from_millis(100);

/// More than a record of the kernel has.
const MAX_RECORD_BYTES: usize = 8 << 10;

/// The processes that the kernel has killed for lack of memory, as its log in `/dev/kmsg` names them.
/// The counter in `/proc/vmstat` is that of the whole guest.
#[derive(Debug)]
pub(crate) struct OomLog {
    /// `None` on a kernel without a log.
    log: Option<File>,
    /// The pids of processes that were killed.
    killed: VecDeque<u32>,
    /// The value of the counter that the records read so far account for.
    counted: u64,
}

impl OomLog {
    /// Opens the log at its end.
    pub(crate) fn open() -> Self {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open("/dev/kmsg");
        let mut oom_log = Self {
            log: log.ok(),
            killed: VecDeque::new(),
            counted: 0,
        };
        oom_log.read();
        oom_log.killed.clear();
        oom_log.counted = oom_kills();
        oom_log
    }

    /// Returns whether the kernel has killed the process for lack of memory. Returns true once, because
    /// the pid can be used again.
    pub(crate) fn take(&mut self, pid: u32) -> bool {
        let deadline = Instant::now() + LOG_TIMEOUT;
        loop {
            self.read();
            if let Some(index) = self.killed.iter().position(|killed| *killed == pid) {
                self.killed.remove(index);
                return true;
            }
            // The kernel counts a kill before it sends the signal, and logs it afterwards.
            if self.log.is_none() || self.counted >= oom_kills() || Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn read(&mut self) {
        let mut record = [0; MAX_RECORD_BYTES];
        while let Some(log) = &mut self.log {
            match log.read(&mut record) {
                Ok(length) => {
                    let Some(pid) = killed_pid(&String::from_utf8_lossy(&record[..length])) else {
                        continue;
                    };
                    self.counted += 1;
                    self.killed.push_back(pid);
                    if self.killed.len() > MAX_KILLS {
                        self.killed.pop_front();
                    }
                }
                // The kernel has overwritten records that were not read.
                Err(error) if error.raw_os_error() == Some(EPIPE) => self.counted = oom_kills(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Returns the pid in a record of the kernel about a kill, `Documentation/ABI/testing/dev-kmsg`.
fn killed_pid(record: &str) -> Option<u32> {
    let (prefix, message) = record.split_once(';')?;
    // Above the three bits of the level, 0 is the kernel: a process can write to the log, too.
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    if priority >> 3 != 0 {
        return None;
    }
    let (_, rest) = message.split_once("Killed process ")?;
    rest.split(' ').next()?.parse().ok()
}

/// Returns how many processes the kernel has killed for lack of memory since it booted.
fn oom_kills() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let value = counters
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_reports_which_process_it_has_killed() {
        let text = "Out of memory: Killed process 123 (tail) total-vm:174000kB\n";
        let of_kernel = format!("3,812,5231457,-;{text}");
        assert_eq!(killed_pid(&of_kernel), Some(123));
        let in_group = format!(
            "3,812,5231457,-;Memory cgroup out of memory: {}",
            &text[15..]
        );
        assert_eq!(killed_pid(&in_group), Some(123));
        let of_process = format!("12,813,5231458,-;{text}");
        assert_eq!(killed_pid(&of_process), None);
        assert_eq!(killed_pid("6,814,5231459,-;random: crng init done\n"), None);
    }
}
