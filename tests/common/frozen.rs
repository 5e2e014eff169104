//! A process that does not die of SIGKILL until it is thawed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// A process in a frozen group of the v1 freezer; thawed when this is dropped.
pub struct Frozen(PathBuf);

impl Frozen {
    pub fn freeze(pid: u32) -> io::Result<Self> {
        let dir = Path::new("/sys/fs/cgroup/freezer").join(format!("vmm-test-{pid}"));
        fs::create_dir(&dir)?;
        let frozen = Self(dir);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string())?;
        fs::write(frozen.0.join("freezer.state"), "FROZEN")?;
        Ok(frozen)
    }

    pub fn thaw(&self) {
        fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        // Busy until what was killed meanwhile has exited.
        let deadline = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.0).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines() {
                let _ = fs::write("/sys/fs/cgroup/freezer/cgroup.procs", pid);
            }
            sleep(Duration::from_millis(1));
        }
    }
}
