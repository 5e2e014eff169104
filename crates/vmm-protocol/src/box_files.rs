use std::path::{Path, PathBuf};

use crate::files::temporary_path;

/// The names of the files in a box directory, for code that lists or copies them. To read or write
/// the files, use [`BoxDir`](crate::BoxDir).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BoxFiles {
    /// The spec of the box and its last ending. Owned by the runtime.
    pub spec: &'static str,
    /// The [`PidRecord`](crate::PidRecord) of the shim. A start is committed once it exists. Not
    /// synced: after a power cut it may be missing or empty.
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
    /// The last output of the helper processes of the payload, at most 64 KiB.
    pub helpers: &'static str,
    /// The number of helper processes, as decimal text. Does not exist without helpers. Not synced.
    pub helper_count: &'static str,
    /// The newest output of the payload. [`rotated_console`](Self::rotated_console) names the older
    /// files, and [`ConsoleOptions`](crate::ConsoleOptions) limits the size of them all.
    pub console: &'static str,
    /// The number of output bytes that rotation has deleted, as decimal text. Does not exist while
    /// that number is 0. Not synced.
    pub console_dropped: &'static str,
    /// The socket to which a payload sends its [readiness](crate::Ready::Notified).
    pub notify: &'static str,
    /// Exists while the payload is paused. Not synced.
    pub paused: &'static str,
    /// The socket over which the shim [serves clients](crate::frames).
    pub control: &'static str,
}

/// The file names that shims and runtimes use.
pub const FILES: BoxFiles = BoxFiles {
    spec: "box.json",
    shim_pid: "shim.pid",
    payload_pid: "payload.pid",
    control_group: "cgroup",
    exit: "exit",
    shim_stderr: "shim.stderr",
    helpers: "helpers.log",
    helper_count: "helpers.count",
    console: "console.log",
    console_dropped: "console.dropped",
    notify: "notify.sock",
    paused: "paused",
    control: "control.sock",
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
    /// Includes the [transient files](Self::transient_files).
    pub fn run_files(&self, dir: &Path) -> Vec<PathBuf> {
        let records = self.run_records().map(|name| dir.join(name));
        let mut files = self.transient_files(dir);
        files.extend(records);
        files
    }

    /// Returns the paths of the files in `dir` that no run of the box may leave: its sockets, the
    /// record of a pause, and the temporary files of a shim that was killed while it wrote. The
    /// runtime deletes them after the run.
    pub fn transient_files(&self, dir: &Path) -> Vec<PathBuf> {
        let written = self.run_records().into_iter().chain([self.console_dropped]);
        let temporary_files = written.map(|name| temporary_path(&dir.join(name)));
        let while_running = [self.notify, self.paused, self.control];
        temporary_files
            .chain(while_running.map(|name| dir.join(name)))
            .collect()
    }

    /// The files that describe a run, also after its end.
    pub(crate) fn run_records(&self) -> [&'static str; 6] {
        [
            self.shim_pid,
            self.payload_pid,
            self.control_group,
            self.exit,
            self.helpers,
            self.helper_count,
        ]
    }
}
