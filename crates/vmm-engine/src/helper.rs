use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::libc::SIGKILL;
use pidfd_spawn::{Child, Command, Stdio};
use vmm_protocol::{BOX_DIR_VARIABLE, ControlGroup};

use crate::{EngineError, descendants};

/// A process that a payload needs beside it, such as the server of a shared directory.
///
/// The payload [declares](crate::Payload::helpers) it, and the shim starts, watches and ends it. The
/// engine connects the payload and the helper through descriptors that it passes to both, so it does
/// not matter which of them starts first.
///
/// ```
/// use vmm_engine::{Command, Helper};
///
/// let mut command = Command::new("/usr/libexec/virtiofsd");
/// command.args(["--fd=3", "--shared-dir=/srv/data"]);
/// let helper = Helper::new("virtiofsd for the share data", command);
/// assert_eq!(helper.name(), "virtiofsd for the share data");
/// ```
#[derive(Debug)]
pub struct Helper {
    name: String,
    command: Command,
}

impl Helper {
    /// Creates a helper with a name for messages. The shim sets the stdin, stdout and stderr of the
    /// command, and clears its environment.
    pub fn new(name: impl Into<String>, command: Command) -> Self {
        Self {
            name: name.into(),
            command,
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the helper of the box in `dir`: in the control group of the payload, without new
    /// privileges, with `output` as its stdout and stderr. It dies with the calling thread.
    ///
    /// Any thread of the shim can reap it; [`descendants::take_status`] returns its exit status.
    ///
    /// # Errors
    ///
    /// [`EngineError::Helper`] with the name.
    pub fn start(mut self, dir: &Path, output: &PipeWriter) -> Result<Child, EngineError> {
        let spawned = self.prepare(dir, output).and_then(|()| {
            let child = self.command.spawn().map_err(io::Error::from)?;
            descendants::keep_status(child.id());
            Ok(child)
        });
        spawned.map_err(|source| EngineError::Helper {
            name: self.name,
            source,
        })
    }

    fn prepare(&mut self, dir: &Path, output: &PipeWriter) -> io::Result<()> {
        for group in ControlGroup::of_this_process()
            .unwrap_or_default()
            .into_dirs()
        {
            self.command.cgroup(File::open(group)?);
        }
        self.command
            .env_clear()
            .env(BOX_DIR_VARIABLE, dir)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(output.try_clone()?))
            .stderr(OwnedFd::from(output.try_clone()?))
            .process_group(0)
            .reset_ignored_signals(true)
            .no_new_privs(true)
            .parent_death_signal(SIGKILL);
        Ok(())
    }
}
