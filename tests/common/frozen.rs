//! A process that does not die of SIGKILL until it is thawed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
        let _ = fs::remove_dir(&self.0);
    }
}
