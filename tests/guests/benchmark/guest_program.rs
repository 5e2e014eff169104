//! A program in the guest, which measures how long the guest itself takes to run a command.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the guest has the program.
pub const PATH: &str = "/bin/spawn-time";

/// Compiles the program, and installs it in a root file system.
pub fn install(root: &Path) {
    let program = root.join(PATH.trim_start_matches('/'));
    fs::create_dir_all(program.parent().expect("a directory")).expect("a directory");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/guests/benchmark/spawn_time.rs"
    );
    let compiled = Command::new("rustc")
        .args([
            "--edition=2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .arg(program)
        .arg(source)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(compiled.expect("rustc").success(), "{source}");
}
