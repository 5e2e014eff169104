//! Mounts of tests, in a namespace of their own.

use std::path::PathBuf;
use std::process::Command;

/// Runs a test again in a mount namespace of its own, on file systems that are shared as those of systemd are.
/// Returns the directory of these, in the process that runs the test.
pub(crate) fn enter_namespace(test: &str) -> Option<PathBuf> {
    const DIR: &str = "VMM_TEST_MOUNTS";
    if let Some(dir) = std::env::var_os(DIR) {
        return Some(dir.into());
    }
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("SKIPPED: this test needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs tmpfs \"$1\" && mount --make-shared \"$1\" && \
                  mkdir -p \"$1/my data/sub\" && mount -t tmpfs tmpfs \"$1/my data\" && \
                  mkdir \"$1/my data/sub\" && mount -t tmpfs tmpfs \"$1/my data/sub\" && \
                  mkdir \"$1/my data/late\" && touch \"$1/my data/sub/file\" && shift && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([dir.path(), &std::env::current_exe().unwrap()])
        .args([test, "--exact"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
    None
}
