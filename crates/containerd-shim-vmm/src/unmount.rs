use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use vmm_protocol::procfs;

use crate::error::ShimError;

/// Removes all mounts at a directory and below it.
///
/// Only the outermost mounts are named: those below end with them. The guest can rename what is in a mount, so the
/// path of one within could lead elsewhere.
///
/// # Errors
///
/// If a mount is left. What is below the directory may belong to the host then, and must not be deleted.
pub(crate) fn unmount_all(dir: &Path) -> Result<(), ShimError> {
    let mut points = points_below(dir)?;
    while !points.is_empty() {
        let mut failed = None;
        for point in outermost(&points) {
            // A mount that a process still uses ends with it.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            if let Err(error) = unmount(point, flags) {
                failed = Some(ShimError::file("unmount", point)(error));
            }
        }
        let left = points_below(dir)?;
        if let Some(error) = failed
            && left.len() >= points.len()
        {
            return Err(error);
        }
        points = left;
    }
    Ok(())
}

/// Returns the mount points at a directory and below it, each before those below it.
fn points_below(dir: &Path) -> Result<Vec<PathBuf>, ShimError> {
    let mounts = procfs::mounts().map_err(ShimError::file("read", "/proc/self/mountinfo"))?;
    let points = mounts.into_iter().map(|mount| mount.point);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    points.sort_unstable();
    Ok(points)
}

/// Returns the mount points that are not below another one. A point with several mounts is returned for each.
fn outermost(points: &[PathBuf]) -> Vec<&PathBuf> {
    let mut outermost: Vec<&PathBuf> = Vec::new();
    for point in points {
        if (outermost.last()).is_none_or(|last| point == *last || !point.starts_with(last)) {
            outermost.push(point);
        }
    }
    outermost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_another_mount_are_not_named() {
        let points = ["/p", "/p", "/p/a", "/p/a/b", "/p.q", "/p.q/a"];
        let mut points = points.map(PathBuf::from);
        points.sort_unstable();
        let expected = ["/p", "/p", "/p.q"].map(PathBuf::from);
        assert_eq!(outermost(&points), expected.iter().collect::<Vec<_>>());
    }
}
