use std::path::{Path, PathBuf};

use crate::files::temporary_path;

/// The environment variable that holds the path of the box directory.
///
/// The payload's descendants inherit it, so the runtime can identify them.
pub const BOX_DIR_VARIABLE: &str = "VMM_BOX_DIR";

/// The names of the files in a box directory.
///
/// The payload finds its box directory in [`VMM_BOX_DIR`](BOX_DIR_VARIABLE). A payload that runs as
/// the same user as its shim can write to every file there. Readers therefore follow three rules:
///
/// * What the kernel reports takes precedence over what a file contains.
/// * Every read is limited in size and rejects anything but a regular file.
/// * Cleanup never depends on a file alone.
///
/// | file | written by | what a payload can achieve by writing to it |
/// |---|---|---|
/// | `box.json` | the runtime | the next runtime that opens the home finds a damaged box, or a box with another spec or another last ending |
/// | `shim.pid` | the shim | nothing while its runtime runs; the next runtime also searches `/proc` for the shim, and reports a forged ending only for a run whose end it did not observe |
/// | `payload.pid` | the shim | the next runtime shows no pid of the payload, or that of another live process |
/// | `cgroup` | the shim | nothing, because control groups are found by name; only groups that an earlier runtime created elsewhere are not found |
/// | `exit` | the shim | nothing while the kernel reports the exit status of the shim: a record that does not match it counts as a crash; otherwise the payload can forge how it ended, but cleanup runs all the same |
/// | `shim.stderr` | the shim | false messages of the shim |
/// | `console.log`, `console.log.1`, … | the shim, with the payload's output | false output of the payload |
/// | `console.dropped` | the shim | a false number of deleted bytes |
/// | `notify.sock` | the shim | the start fails |
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BoxFiles {
    /// The spec of the box and its last ending. Owned by the runtime.
    pub spec: &'static str,
    /// The [`PidRecord`](crate::PidRecord) of the shim. A start is committed once it exists.
    pub shim_pid: &'static str,
    /// The [`PidRecord`](crate::PidRecord) of the payload, written when the payload starts. Not
    /// synced: after a power cut it may have any content.
    pub payload_pid: &'static str,
    /// The directories of the payload's [`ControlGroup`](crate::ControlGroup), one per line. Not
    /// synced, and only a hint: control groups are found by name.
    pub control_group: &'static str,
    /// The [`ExitRecord`](crate::ExitRecord) of the last run.
    pub exit: &'static str,
    /// The stderr of the shim.
    pub shim_stderr: &'static str,
    /// The newest output of the payload. [`rotated_console`](Self::rotated_console) names the older
    /// files, and [`ConsoleOptions`](crate::ConsoleOptions) limits the size of them all.
    pub console: &'static str,
    /// The number of output bytes that rotation has deleted, as decimal text. Does not exist while
    /// that number is 0. Not synced.
    pub console_dropped: &'static str,
    /// The socket to which a payload sends its [readiness](crate::Ready::Notified).
    pub notify: &'static str,
}

/// The file names that shims and runtimes use.
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
    /// Returns the name of the console file that has been rotated `number` times.
    ///
    /// A higher number means an older file; 0 is [`console`](Self::console) itself.
    pub fn rotated_console(&self, number: u8) -> String {
        match number {
            0 => self.console.to_owned(),
            number => format!("{}.{number}", self.console),
        }
    }

    /// Returns the paths of all files that belong to one run of the box in `dir`. The runtime
    /// deletes them before the next run.
    ///
    /// Includes the temporary files that a crashed writer may have left.
    pub fn run_files(&self, dir: &Path) -> Vec<PathBuf> {
        let records = [
            self.shim_pid,
            self.payload_pid,
            self.control_group,
            self.exit,
        ]
        .map(|name| dir.join(name));
        let temporary_files = records.each_ref().map(|path| temporary_path(path));
        records
            .into_iter()
            .chain(temporary_files)
            .chain([dir.join(self.notify)])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_run_include_the_temporary_files_of_a_crashed_writer() {
        let dir = Path::new("/box");
        let files = FILES.run_files(dir);
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
