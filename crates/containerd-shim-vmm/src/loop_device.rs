use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys;

/// A block device whose contents are those of a file, `loop(4)`. It is free again when this value is dropped and no file system
/// on it is mounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Connects a free device to a file.
    pub(crate) fn attach(path: &Path, is_read_only: bool) -> io::Result<Self> {
        let open = |path: &Path| File::options().read(true).write(!is_read_only).open(path);
        let file = open(path)?;
        let control = File::open("/dev/loop-control")?;
        loop {
            let number = sys::find_free_loop_device(&control)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path)?;
            match sys::configure_loop_device(&device, &file, is_read_only) {
                // Another process has used it meanwhile.
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                configured => {
                    configured?;
                    return Ok(Self {
                        path,
                        _device: device,
                    });
                }
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
