//! What root of a guest can change on the host, with the real containerd and its command line `ctr`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Containerd, assert_success, stderr, stdout};

/// Mounts what the host shares with the guest, and tries to write to all of it.
const WRITE_TO_ALL: &str = "
    busybox mkdir /share && mount -t virtiofs pod /share && cd /share/c || exit 1
    busybox ln -s $VICTIM process-e.json && echo planted a link
    busybox mkdir /share/d && echo created a directory
    echo x >container.json && echo changed a spec
    busybox mv mounts other && echo moved the mounts
    for dir in mounts/*; do [ -d $dir ] && touch $dir/new && echo wrote to a volume; done
    touch rootfs/new && echo wrote to its root";

#[test]
fn root_of_a_guest_writes_only_to_what_its_containers_can_write_to() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let (volume, victim) = (containerd.path("volume"), containerd.path("victim"));
    fs::create_dir(&volume).unwrap();
    fs::write(&victim, "of the host").unwrap();
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:ro",
        volume.display()
    );
    let options = ["--detach", "--privileged", "--mount", &mount];
    assert_success(&containerd.run("c", &options, &["sleep", "infinity"]));
    let script = WRITE_TO_ALL.replace("$VICTIM", &victim.to_string_lossy());
    let exec = |id: &str, command: &[&str]| {
        let exec = ["task", "exec", "--exec-id", id, "c"];
        containerd.ctr([&exec[..], command].concat())
    };
    let output = exec("w", &["sh", "-c", &script]);
    assert_success(&output);
    assert_eq!(
        stdout(&output),
        "wrote to its root\n",
        "{}",
        stderr(&output)
    );
    assert_success(&exec("e", &["true"]));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "of the host");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}

#[test]
fn the_read_only_root_of_a_container_is_read_only_for_its_guest() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let shared = containerd.path("shared");
    fs::write(&shared, "of the host\n").unwrap();
    let mount = format!(
        "type=bind,src={},dst=/no/such/file,options=rbind",
        shared.display()
    );
    let fixed = ["--rm", "--privileged", "--read-only", "--cwd", "/new/dir"];
    let options = [&fixed[..], &["--mount", &mount]].concat();
    // A container can mount its root for writing again, unless it is read-only on the host.
    let script =
        "pwd; mount -o remount,rw / 2>/dev/null; touch /file || echo read-only; cat /no/such/file";
    let output = containerd.run("c", &options, &["sh", "-c", script]);
    assert_success(&output);
    assert_eq!(
        stdout(&output),
        "/new/dir\nread-only\nof the host\n",
        "{}",
        stderr(&output)
    );
    containerd.assert_nothing_left();
}
