//! The same commands with `std::process::Command`.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Output;

use pidfd_spawn::SpawnError;

use common::{OTHER_USER, is_root};

/// Runs the same calls on both commands, and compares the results.
macro_rules! same {
    ($program:expr $(, $method:ident($($argument:expr),*))* $(,)?) => {{
        let mut ours = pidfd_spawn::Command::new($program);
        let mut std = std::process::Command::new($program);
        $(
            ours.$method($($argument),*);
            std.$method($($argument),*);
        )*
        compare(ours.output(), std.output(), &format!("{ours:?}"));
    }};
}

fn compare(ours: io::Result<Output>, std: io::Result<Output>, what: &str) {
    match (ours, std) {
        (Ok(ours), Ok(std)) => assert_eq!(ours, std, "{what}"),
        (Err(ours), Err(std)) => {
            assert_eq!(ours.kind(), std.kind(), "{what}");
            let ours = ours.get_ref().unwrap().downcast_ref::<SpawnError>();
            assert_eq!(ours.unwrap().raw_os_error(), std.raw_os_error(), "{what}");
        }
        (ours, std) => panic!("{ours:?}, {std:?}: {what}"),
    }
}

#[test]
fn environments() {
    same!("/usr/bin/env");
    same!(
        "/usr/bin/env",
        env("A", "1"),
        env("B", ""),
        env_remove("HOME")
    );
    same!("/usr/bin/env", env_clear());
    same!("/usr/bin/env", env("A", "1"), env_clear(), env("B", "2"));
    same!("/usr/bin/env", env_clear(), env("A", "1"), env_remove("A"));
    same!("/usr/bin/env", env_remove("A"), env("A", "1"));
    same!("/usr/bin/env", env("with=sign", "a=b"));
}

#[test]
fn arguments() {
    let script = "cat /proc/$$/cmdline; pwd";
    same!("/bin/sh", arg("-c"), arg(script));
    same!(
        "/bin/sh",
        args(["-c", script, "", " ", "ü"]),
        current_dir("/proc")
    );
    same!("/bin/sh", arg0("zero"), args(["-c", script]));
}

#[test]
fn searches() {
    same!("true");
    same!("");
    same!("/");
    same!(".");
    same!("/nonexistent");
    same!("nonexistent");
    same!("nonexistent/relative");
    same!("/etc/passwd");
    same!("/etc/passwd/below");
    same!("passwd", env("PATH", "/etc"));
    same!("passwd", env("PATH", "/etc:/nonexistent"));
    same!("true", env("PATH", "/etc/passwd:/bin"));
    same!("true", env("PATH", "/nonexistent"));
    same!("true", env_remove("PATH"));
    same!("true", env_clear());
    same!("bin/true", current_dir("/"));
    same!("./true", current_dir("/bin"));
    same!("true", env("PATH", ""), current_dir("/bin"));
    same!("x".repeat(300));
    same!(format!("/{}", "x/".repeat(3_000)));
}

#[test]
fn errors() {
    same!("/bin/true", current_dir("/nonexistent"));
    same!("/bin/true", arg("x".repeat(1 << 20)));
    same!("/bin/true", process_group(-5));
    same!("/bin/true", arg("a\0b"));
    same!("a\0b");
    same!("/bin/true", env("a\0b", ""));
}

#[test]
fn statuses() {
    for script in ["exit 0", "exit 255", "kill -KILL $$", "kill -TERM $$"] {
        same!("/bin/sh", args(["-c", script]));
    }
}

#[test]
fn credentials() {
    if !is_root() {
        return common::skip("changing the user needs root");
    }
    same!("/usr/bin/id", uid(OTHER_USER), gid(OTHER_USER));
    same!("/usr/bin/id", uid(OTHER_USER));
    same!("/usr/bin/id", gid(OTHER_USER));
}
