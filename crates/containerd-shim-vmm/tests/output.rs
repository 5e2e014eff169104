//! Where the output of a container goes, with the real containerd and its command line `ctr`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Containerd, assert_success, eventually};

/// Writes what it receives to files in the directory of its argument, then what it knows about the container.
const LOGGER: &str = "#!/bin/sh
exec 5>&-
cat <&3 >\"$2/stdout\" &
cat <&4 >\"$2/stderr\" &
wait
echo \"$1 $CONTAINER_NAMESPACE $CONTAINER_ID\" >\"$2/new\"
mv \"$2/new\" \"$2/end\"
";

#[test]
fn the_output_of_a_container_goes_to_a_logging_program() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let (program, dir) = (containerd.path("logger"), containerd.path("the log"));
    fs::write(&program, LOGGER).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(&dir).unwrap();
    let encoded_dir = dir.to_str().unwrap().replace(' ', "%20");
    let uri = format!("binary://{}?dir={encoded_dir}", program.display());
    let script = "echo one; echo two >&2; seq 100000";
    let output = containerd.run("c", &["--rm", "--log-uri", &uri], &["sh", "-c", script]);
    assert_success(&output);
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    eventually("the logging program has ended", || !read("end").is_empty());
    assert_eq!(read("end"), "dir default c\n");
    assert_eq!(read("stderr"), "two\n");
    let stdout = read("stdout");
    assert!(stdout.starts_with("one\n1\n2\n"));
    assert!(stdout.ends_with("\n100000\n"));
    containerd.assert_nothing_left();
}

#[test]
fn the_output_of_a_container_is_appended_to_a_file() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let path = containerd.path("log");
    fs::write(&path, "before\n").unwrap();
    let uri = format!("file://{}", path.display());
    let script = "echo one; echo two >&2";
    let output = containerd.run("c", &["--rm", "--log-uri", &uri], &["sh", "-c", script]);
    assert_success(&output);
    eventually("the output is in the file", || {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines == ["before", "one", "two"]
    });
    containerd.assert_nothing_left();
}
