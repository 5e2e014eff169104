//! What the benchmark reads from the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the static program `vmm-shim`, as the README of the crate `vmm-shim` shows it, and returns
/// its path. Returns `None` if it cannot be built.
pub fn static_shim() -> Option<PathBuf> {
    // target/release/deps/<benchmark>
    let benchmark = std::env::current_exe().ok()?;
    let target = benchmark.ancestors().nth(3)?;
    let built = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--package=vmm-shim", "--bin=vmm-shim"])
        .args(["--release", "--target-dir"])
        .arg(target)
        .args(["--", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static"])
        .args(["-C", "link-arg=-Wl,-z,separate-loadable-segments"])
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    let program = target.join("release").join("vmm-shim");
    (built.ok()?.success() && program.exists()).then_some(program)
}

/// Returns the type of the file system that contains `path`, and whether it has a journal if it is
/// ext4.
pub fn file_system(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_default();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let found = mounts
        .filter(|(_, dir, _)| path.starts_with(dir))
        .max_by_key(|(_, dir, _)| dir.len());
    match found {
        Some((device, _, "ext4")) => {
            let device = device.trim_start_matches("/dev/");
            let journals = fs::read_dir("/proc/fs/jbd2").into_iter().flatten();
            let has_journal = journals.flatten().any(|journal| {
                let name = journal.file_name().to_string_lossy().into_owned();
                name.rsplit_once('-').is_some_and(|(of, _)| of == device)
            });
            let with = if has_journal { "with" } else { "without" };
            format!("ext4 {with} a journal")
        }
        Some((_, _, name)) => name.to_owned(),
        None => "unknown".to_owned(),
    }
}

/// Returns the proportional set size of a process in KiB, `proc_pid_smaps(5)`.
pub fn pss_kib(pid: u32) -> Option<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
