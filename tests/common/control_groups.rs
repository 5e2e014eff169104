//! Control groups of boxes, which a host may lack.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, ControlGroup};

use super::boxes::box_dir;

/// Returns the control groups of a running box. Returns `None`, after a note on stderr, on a host
/// without control groups.
pub fn groups_of(home: &PerTestBoxHome, id: &str) -> Option<Vec<PathBuf>> {
    if let Err(error) = ControlGroup::check() {
        note_skipped(&error);
        return None;
    }
    let record = fs::read_to_string(box_dir(home, id).join("cgroup")).unwrap();
    let dirs: Vec<_> = record.lines().map(PathBuf::from).collect();
    assert!(
        !dirs.is_empty() && dirs.iter().all(|dir| dir.exists()),
        "{dirs:?}"
    );
    Some(dirs)
}

/// Writes to stderr directly, because `println` output is hidden when a test passes.
pub fn note_skipped(why: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "SKIPPED, in part: {why}");
}

/// Hides the control groups from the threads that this one starts, so that boxes have none. Does
/// nothing without the permission, which the creation of groups needs as well.
pub fn hide_control_groups() {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let _ = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, private, none))
        .and_then(|()| umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH));
    assert!(ControlGroup::check().is_err());
}

/// A command that leaves an orphan which only its control group identifies.
pub const LEAVE_ORPHAN: &str = "setsid env -i sh -c 'echo $$ > orphan; exec sleep 1000' & wait";

/// Limits the CPU time and the memory, which needs control groups.
pub fn limited(spec: BoxSpec) -> BoxSpec {
    spec.cpus(1).memory_mib(64)
}
