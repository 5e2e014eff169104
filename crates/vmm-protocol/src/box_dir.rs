use std::path::{Path, PathBuf};

use crate::files::temporary_of;

/// What the payload finds the box's directory in. Its descendants inherit it, so that they can be
/// told from other processes.
pub const BOX_DIR_VARIABLE: &str = "VMM_BOX_DIR";

/// The names of the files in a box's directory.
///
/// The payload finds the directory in [`VMM_BOX_DIR`](BOX_DIR_VARIABLE), and one that runs as the
/// same user can write anything there. So nothing there is trusted over the kernel, every read is
/// bounded and refuses what is not a regular file, and nothing that a cleanup needs is only there.
///
/// | file | written by | what a payload that writes to it can achieve |
/// |---|---|---|
/// | `box.json` | the runtime | its own box is another one at the next opening of the home, or is damaged: another spec, another last end |
/// | `shim.pid` | the shim | nothing while its runtime runs. The next one looks for the shim in `/proc`, and reports an end that it has not seen as the payload likes |
/// | `payload.pid` | the shim | the next runtime shows no pid of the payload |
/// | `cgroup` | the shim | nothing: groups are found by their names. Groups that an earlier runtime made in another place are not found |
/// | `exit` | the shim | nothing where the kernel reports how the shim ended: what does not fit that is a crash. Otherwise the payload chooses how it ended, and is cleaned up after nevertheless |
/// | `shim.stderr` | the shim | false messages of the shim |
/// | `console.log` | the payload | its own output |
/// | `notify.sock` | the shim | the start fails |
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BoxFiles {
    /// What the box is, and how it last ended. The runtime's.
    pub spec: &'static str,
    /// Who the shim is: a [`PidRecord`](crate::PidRecord). Its being there commits a start.
    pub shim_pid: &'static str,
    /// Who the payload is, from its start on: a [`PidRecord`](crate::PidRecord). Not synced, so a
    /// crash of the machine can leave anything in it.
    pub payload_pid: &'static str,
    /// Where the kernel bounds the payload: the paths of its [`ControlGroup`](crate::ControlGroup), a
    /// line each. Not synced, and a hint only: groups are found by their names.
    pub control_group: &'static str,
    /// How it ended: an [`ExitRecord`](crate::ExitRecord).
    pub exit: &'static str,
    /// What the shim itself prints.
    pub shim_stderr: &'static str,
    /// What the payload prints, within its [`ConsoleOptions`](crate::ConsoleOptions): the newest of
    /// the files that [`rotated_console`](Self::rotated_console) names.
    pub console: &'static str,
    /// The number of bytes of output that rotation has deleted, as decimal text; missing while there
    /// are none. Not synced.
    pub console_dropped: &'static str,
    /// The socket at which a payload says that it is [ready](crate::Ready::Notified).
    pub notify: &'static str,
}

/// The names that shim and runtime use.
pub const FILES: BoxFiles = BoxFiles {
    spec: "box.json",
    shim_pid: "shim.pid",
    payload_pid: "payload.pid",
    control_group: "cgroup",
    exit: "exit",
    shim_stderr: "shim.stderr",
    console: "console.log",
    console_dropped: "console.dropped",
    notify: "notify.sock",
};

impl BoxFiles {
    /// Returns the name of the console file that has been rotated `number` times; a higher number is
    /// an older file, and 0 is [`console`](Self::console) itself.
    pub fn rotated_console(&self, number: u8) -> String {
        match number {
            0 => self.console.to_owned(),
            number => format!("{}.{number}", self.console),
        }
    }

    /// Every file of a run, for clearing up before the next; also what a crash may have left of
    /// writing them.
    pub fn of_a_run(&self, dir: &Path) -> Vec<PathBuf> {
        let written = [
            self.shim_pid,
            self.payload_pid,
            self.control_group,
            self.exit,
        ]
        .map(|name| dir.join(name));
        let temporary = written.each_ref().map(|path| temporary_of(path));
        written
            .into_iter()
            .chain(temporary)
            .chain([dir.join(self.notify)])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crashed_writer_leaves_is_of_the_run() {
        let dir = Path::new("/box");
        let files = FILES.of_a_run(dir);
        for name in ["shim.pid", "payload.pid", "cgroup", "exit"] {
            let temporary = dir.join(format!(".{name}.tmp"));
            assert!(files.contains(&dir.join(name)) && files.contains(&temporary));
        }
        assert!(files.contains(&dir.join(FILES.notify)));
        assert!(
            !files.contains(&dir.join(FILES.spec)) && !files.contains(&dir.join(FILES.console))
        );
    }
}
