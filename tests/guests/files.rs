//! Files that are copied to a guest and out of it, and what the guest reports about itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf, repeat};
use vmm_archive::{CreateOptions, ExtractOptions, create, extract};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    Ending, ExecError, ExecSpec, GetSpec, PutSpec, RequestErrorKind, RuntimeError, VmmRuntime,
};

use crate::agent::boot;
use crate::common::{DEADLINE, pause, stream_bytes};
use crate::guest::{GuestFiles, open_runtime};

/// Runs a script in the guest, and returns its output.
async fn shell(runtime: &VmmRuntime, id: &str, script: &str) -> String {
    let spec = ExecSpec::new("", ["sh", "-c", script]);
    let output = runtime
        .exec(id, spec)
        .await
        .unwrap()
        .output()
        .await
        .unwrap();
    assert_eq!(output.ending, Ending::Exited { code: 0 }, "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn archive_of(source: &Path, options: &CreateOptions) -> Vec<u8> {
    let mut archive = Vec::new();
    create(source, &mut archive, options).unwrap();
    archive
}

async fn read_all(mut archive: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn kind_of(error: &RuntimeError) -> RequestErrorKind {
    match error {
        RuntimeError::Exec {
            source: ExecError::Refused(error),
            ..
        } => {
            assert!(!error.message.is_empty());
            error.kind
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_tree_is_the_same_in_the_guest_and_after_it_is_copied_out() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = boot(&runtime, &files).await;

    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("locked")).unwrap();
    fs::write(tree.join("tool"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("tool"), Permissions::from_mode(0o4755)).unwrap();
    fs::write(tree.join("locked/data"), vec![7; 1_000_000]).unwrap();
    fs::set_permissions(tree.join("locked"), Permissions::from_mode(0o550)).unwrap();
    symlink("tool", tree.join("link")).unwrap();
    let archive = archive_of(&tree, &CreateOptions::default().owner(33, 34));

    let spec = PutSpec::new("/copy").rename_root(true);
    runtime.put(&id, spec, &archive[..]).await.unwrap();
    let script = "/copy/link; cd /copy; stat -c '%n %a %u:%g %F' tool locked locked/data link";
    let expected = "ran\ntool 4755 33:34 regular file\nlocked 550 33:34 directory\n\
                    locked/data 644 33:34 regular file\nlink 777 33:34 symbolic link\n";
    assert_eq!(shell(&runtime, &id, script).await, expected);

    let archive = read_all(runtime.get(&id, GetSpec::new("/copy")).await.unwrap()).await;
    let copy = dir.path().join("back");
    let options = ExtractOptions::default().rename_root(true);
    extract(&archive[..], &copy, &options).unwrap();
    let mode = |name| fs::metadata(copy.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tool"), mode("locked")), (0o755, 0o550));
    assert_eq!(fs::read(copy.join("locked/data")).unwrap(), [7; 1_000_000]);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("tool"));

    let get = async |path: &str| runtime.get(&id, GetSpec::new(path)).await.unwrap_err();
    assert_eq!(
        kind_of(&get("/nonexistent").await),
        RequestErrorKind::NotFound
    );
    assert_eq!(
        kind_of(&get("/copy/tool/").await),
        RequestErrorKind::NotADirectory
    );
    let put = async |spec| runtime.put(&id, spec, &archive[..]).await.unwrap_err();
    let into_file = put(PutSpec::new("/copy/tool")).await;
    assert_eq!(kind_of(&into_file), RequestErrorKind::NotADirectory);
    let keep = put(PutSpec::new("/").overwrite(false)).await;
    assert_eq!(kind_of(&keep), RequestErrorKind::Exists);
    let garbage = runtime.put(&id, PutSpec::new("/"), &[7; 4096][..]).await;
    assert_eq!(kind_of(&garbage.unwrap_err()), RequestErrorKind::Invalid);
    assert!(
        runtime
            .executions(&id)
            .await
            .unwrap()
            .iter()
            .all(|it| it.id.starts_with("exec-"))
    );

    let stats = runtime.stats(&id).await.unwrap();
    let guest = stats.guest.unwrap();
    assert!(
        guest.memory_available_bytes < guest.memory_total_bytes,
        "{stats:?}"
    );
    assert!((1..50).contains(&guest.processes), "{stats:?}");
    assert!(
        stats.usage.memory_bytes.unwrap() > guest.memory_total_bytes / 8,
        "{stats:?}"
    );
    runtime.stop(&id).await.unwrap();
}

/// Returns an archive with one file of zeros, without holding it. The file has no blocks in the guest,
/// which has less memory.
fn large_archive(size: u64) -> impl AsyncRead + Unpin {
    let mut header = vec![0; 512];
    header[..5].copy_from_slice(b"large");
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    io::Cursor::new(header)
        .chain(repeat(0).take(size))
        .chain(repeat(0).take(1024))
}

/// Returns a value of a process from one of its files in `/proc`, in KiB.
fn kib_of(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap().trim().trim_end_matches(" kB");
    value.parse().unwrap()
}

#[tokio::test]
async fn a_large_file_fills_no_memory_and_waits_for_a_slow_reader() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = boot(&runtime, &files).await;
    shell(&runtime, &id, "true").await;
    let shim = runtime.info(&id).await.unwrap().pid.unwrap();
    let shim_peak = || {
        let status = fs::read_to_string(format!("/proc/{shim}/status"));
        kib_of(&status.unwrap(), "VmHWM:")
    };
    let before = shim_peak();
    let size = stream_bytes();

    runtime
        .put(&id, PutSpec::new("/"), large_archive(size))
        .await
        .unwrap();
    let written = shell(&runtime, &id, "stat -c %s /large").await;
    assert_eq!(written.trim(), size.to_string());

    let mut archive = runtime.get(&id, GetSpec::new("/large")).await.unwrap();
    archive.read_u8().await.unwrap();
    // The reader is slow. Other commands go on.
    for _ in 0..10 {
        shell(&runtime, &id, "true").await;
        pause().await;
    }
    let mut rest = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match archive.read(&mut buffer).await.unwrap() {
            0 => break,
            length => rest += length as u64,
        }
    }
    // A header, the file, and the end.
    assert_eq!(rest + 1, 512 + size + 1024);
    let growth = shim_peak() - before;
    assert!(growth < 4096, "the shim has grown by {growth} KiB");
    // Without its code, which is larger in a program for tests.
    let agent = shell(&runtime, &id, "cat /proc/1/smaps_rollup").await;
    let agent = kib_of(&agent, "Anonymous:");
    assert!(agent < 1024, "the agent has {agent} KiB");
    runtime.stop(&id).await.unwrap();
}

/// Yields the begin of an archive, and then nothing.
struct Stalled<'a>(&'a [u8]);

impl AsyncRead for Stalled<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

/// Waits until this many processes of file transfers run in the guest.
async fn wait_for_transfers(runtime: &VmmRuntime, id: &str, count: usize) {
    let script = "for i in /proc/[0-9]*; do cat $i/cmdline; echo; done 2>/dev/null";
    let deadline = Instant::now() + DEADLINE;
    loop {
        let list = shell(runtime, id, script).await;
        let is_transfer = |line: &&str| line.contains("--put\0") || line.contains("--get\0");
        if list.lines().filter(is_transfer).count() == count {
            return;
        }
        assert!(Instant::now() < deadline, "not {count} transfers: {list:?}");
        pause().await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_transfer() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = boot(&runtime, &files).await;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), vec![7; 1 << 20]).unwrap();
    let archive = archive_of(&dir.path().join("data"), &CreateOptions::default());
    let half = Stalled(&archive[..500_000]);
    tokio::select! {
        ended = runtime.put(&id, PutSpec::new("/put"), half) => panic!("{ended:?}"),
        () = wait_for_transfers(&runtime, &id, 1) => {}
    }
    wait_for_transfers(&runtime, &id, 0).await;
    assert_eq!(
        shell(&runtime, &id, "ls -A /put").await,
        "",
        "a part of a file was left"
    );

    let script = "cat /bin/busybox /bin/busybox /bin/busybox >/file";
    shell(&runtime, &id, script).await;
    let archive = runtime.get(&id, GetSpec::new("/file")).await.unwrap();
    wait_for_transfers(&runtime, &id, 1).await;
    drop(archive);
    wait_for_transfers(&runtime, &id, 0).await;
    runtime.stop(&id).await.unwrap();
}
