//! A process that does not die from SIGKILL until it is thawed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// A process in a frozen group of the v1 freezer. Dropping this thaws the process.
pub struct FrozenProcess {
    group: PathBuf,
}

impl FrozenProcess {
    pub fn freeze(pid: u32) -> io::Result<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(format!("vmm-test-{pid}"));
        fs::create_dir(&group)?;
        let frozen = Self { group };
        fs::write(frozen.group.join("cgroup.procs"), pid.to_string())?;
        fs::write(frozen.group.join("freezer.state"), "FROZEN")?;
        Ok(frozen)
    }

    pub fn thaw(&self) {
        fs::write(self.group.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for FrozenProcess {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("freezer.state"), "THAWED");
        // The group is busy until its killed processes have exited.
        let deadline = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.group)
            .is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            let processes = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines() {
                let _ = fs::write("/sys/fs/cgroup/freezer/cgroup.procs", pid);
            }
            sleep(Duration::from_millis(1));
        }
    }
}
