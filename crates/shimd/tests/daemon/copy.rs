//! `cp`, and the HTTP requests that it sends, with a guest.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use vmm_archive::{CreateOptions, create};
use vmm_rest::ClientError;
use vmm_rest::wire::{ErrorCode, GetFilesQuery, PutFilesQuery};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, run_shimd, serve, shimd};
use crate::guests::write_image;
use crate::process::eventually;

/// A daemon with the guest `vm`.
struct GuestDaemon {
    daemon: Daemon,
    home: PerTestBoxHome,
    dir: TempDir,
}

impl GuestDaemon {
    /// Returns `None`, and prints that the test is skipped, on a machine that cannot run guests.
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        write_image(dir.path())?;
        let home = PerTestBoxHome::new();
        let mut command = serve(&home);
        command.arg("--images").arg(dir.path());
        let daemon = Daemon::spawn(&home, command).await;
        run_shimd(&home, &["run", "--detach", "--name", "vm", "busybox"]).out();
        Some(Self { daemon, home, dir })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn copy(&self, args: &[&str]) -> CommandOutput {
        run_shimd(&self.home, &[&["cp"], args].concat())
    }

    /// Runs a script in the guest, and returns its output.
    fn shell(&self, script: &str) -> String {
        run_shimd(&self.home, &["exec", "vm", "sh", "-c", script]).out()
    }

    async fn shut_down(self) {
        run_shimd(&self.home, &["stop", "vm"]).out();
        self.daemon.shut_down().await;
    }
}

#[tokio::test]
async fn files_are_copied_as_by_docker() {
    let Some(guest) = GuestDaemon::start().await else {
        return;
    };
    let source = guest.path("source");
    fs::create_dir_all(guest.path("source/sub")).unwrap();
    fs::write(guest.path("source/sub/file"), "content").unwrap();
    fs::set_permissions(guest.path("source/sub/file"), Permissions::from_mode(0o640)).unwrap();
    symlink("sub/file", guest.path("source/link")).unwrap();

    // To a new name, then into the directory that exists now.
    assert_eq!(guest.copy(&[&source, "vm:/new"]).out(), "");
    assert_eq!(guest.copy(&[&source, "vm:new/"]).out(), "");
    let listed = guest.shell("cd /new; cat link; stat -c '%n %a %u %F' sub/file source/link");
    assert_eq!(
        listed,
        "contentsub/file 640 0 regular file\nsource/link 777 0 symbolic link\n"
    );
    // The contents only; a file, to a new name and into a directory.
    guest.copy(&[&format!("{source}/."), "vm:/contents"]).out();
    let file = guest.path("source/sub/file");
    guest.copy(&[&file, "vm:/contents/renamed"]).out();
    guest.copy(&[&file, "vm:/contents"]).out();
    let listed = guest.shell("cd /contents; cat sub/file renamed file");
    assert_eq!(listed, "contentcontentcontent");

    guest.copy(&["vm:/new", &guest.path("back")]).out();
    assert_eq!(fs::read(guest.path("back/link")).unwrap(), b"content");
    assert_eq!(
        fs::read_link(guest.path("back/link")).unwrap(),
        Path::new("sub/file")
    );
    guest
        .copy(&["-L", "vm:/new/link", &guest.path("back/target")])
        .out();
    let target = fs::symlink_metadata(guest.path("back/target")).unwrap();
    assert!(target.is_file());
    guest.copy(&["vm:/new/sub/.", &guest.path("back")]).out();
    assert_eq!(fs::read(guest.path("back/file")).unwrap(), b"content");

    // Archives on stdout and stdin.
    let archive = shimd(&guest.home).args(["cp", "vm:/new/sub", "-"]).output();
    let mut command = shimd(&guest.home);
    command
        .args(["cp", "-", "vm:/stream"])
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&archive.unwrap().stdout).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(guest.shell("cat /stream/sub/file"), "content");
    guest.shut_down().await;
}

#[tokio::test]
async fn a_copy_that_fails_has_a_cause_and_no_copy_leaves_its_destination() {
    let Some(guest) = GuestDaemon::start().await else {
        return;
    };
    let file = guest.path("file");
    fs::write(&file, "content").unwrap();
    run_shimd(&guest.home, &["run", "--detach", "--name", "nap", "idle"]).out();
    for (args, message) in [
        (
            &[file.as_str(), "vm:/missing/name"][..],
            "/missing not found",
        ),
        (&[&file, "vm:/missing/"], "/missing/ is not a directory"),
        (&["/nonexistent", "vm:/"], "/nonexistent not found"),
        (&["vm:/nonexistent", "/tmp"], "/nonexistent not found"),
        (&["vm:/", &file], "is not a directory"),
        (&[&file, "missing:/"], "missing"),
        (&[&file, "nap:/"], "does not support the request put"),
        (&["nap:/etc", "/tmp"], "does not support the request get"),
        (&[&file, "/tmp"], "must be BOX:PATH"),
        (&["vm:/a", "vm:/b"], "must be BOX:PATH"),
    ] {
        let output = guest.copy(args);
        assert_eq!(output.code, 1, "{args:?}: {output:?}");
        assert!(output.err.contains(message), "{args:?}: {output:?}");
    }
    // What cannot be read completely is not extracted as if it were complete.
    symlink("loop", guest.path("loop")).unwrap();
    fs::create_dir(guest.path("tree")).unwrap();
    symlink("../loop", guest.path("tree/a")).unwrap();
    let output = guest.copy(&["-L", &guest.path("tree"), "vm:/tree"]);
    assert!(
        output.code == 1 && output.err.contains("tree/a"),
        "{output:?}"
    );

    // A guest that makes use of a link which it has copied before.
    let target = guest.path("target");
    fs::create_dir(&target).unwrap();
    guest.shell("busybox mkdir /evil && busybox ln -s ../outside /evil/link");
    guest.copy(&["vm:/evil/.", &target]).out();
    guest.shell("cd /evil; busybox rm link && busybox mkdir link && echo x >link/file");
    fs::create_dir(guest.path("outside")).unwrap();
    let output = guest.copy(&["vm:/evil/.", &target]);
    assert!(
        output.err.contains("leads out of the destination"),
        "{output:?}"
    );
    assert_eq!(fs::read_dir(guest.path("outside")).unwrap().count(), 0);

    // Bits and owners that a guest could use on this host.
    guest.shell("cd /; echo >tool; busybox chown 33 tool; busybox chmod 6755 tool");
    guest.copy(&["vm:/tool", &target]).out();
    let tool = fs::metadata(guest.path("target/tool")).unwrap();
    let own = fs::metadata(&target).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid()), (0o755, own.uid()));
    guest.shut_down().await;
}

fn code(error: &ClientError) -> Option<ErrorCode> {
    assert!(matches!(error, ClientError::Refused { .. }), "{error:?}");
    error.code()
}

#[tokio::test]
async fn archives_are_sent_and_received_over_http() {
    let Some(guest) = GuestDaemon::start().await else {
        return;
    };
    let client = guest.daemon.client.clone();
    let path = guest.path("data");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    let mut archive = Vec::new();
    create(Path::new(&path), &mut archive, &CreateOptions::default()).unwrap();

    let put = async |query| {
        let archive = std::io::Cursor::new(archive.clone());
        client.put_files("vm", &query, archive).await
    };
    put(PutFilesQuery::new("/put")).await.unwrap();
    let query = GetFilesQuery::new("/put/data");
    let mut received = Vec::new();
    let mut reader = client.get_files("vm", &query).await.unwrap();
    reader.read_to_end(&mut received).await.unwrap();
    assert!(received[512..(3 << 20) + 512] == archive[512..(3 << 20) + 512]);

    let exists = put(PutFilesQuery::new("/put").overwrite(false)).await;
    assert_eq!(code(&exists.unwrap_err()), Some(ErrorCode::AlreadyExists));
    let file = put(PutFilesQuery::new("/put/data")).await.unwrap_err();
    assert_eq!(code(&file), Some(ErrorCode::InvalidArgument));
    let relative = put(PutFilesQuery::new("put")).await.unwrap_err();
    assert_eq!(code(&relative), Some(ErrorCode::InvalidArgument));
    let missing = client
        .get_files("vm", &GetFilesQuery::new("/missing"))
        .await;
    assert_eq!(code(&missing.err().unwrap()), Some(ErrorCode::NotFound));

    let metrics = async || client.box_metrics("vm").await.unwrap();
    let of_guest = metrics().await.guest.unwrap();
    assert!((1..50).contains(&of_guest.processes), "{of_guest:?}");
    assert!(of_guest.memory_available_bytes < of_guest.memory_total_bytes);
    run_shimd(&guest.home, &["pause", "vm"]).out();
    let paused = metrics().await;
    assert!(paused.guest.is_none() && paused.memory_bytes.is_some());
    run_shimd(&guest.home, &["unpause", "vm"]).out();

    // A client that leaves in the middle of an archive ends the transfer, and so does one that stalls.
    let [leaving, mut stalled] = ["/a", "/b"].map(|path| {
        let mut socket = UnixStream::connect(guest.home.path().join("shimd.sock")).unwrap();
        let head = format!(
            "PUT /v1/boxes/vm/files?path={path} HTTP/1.1\r\nhost: x\r\n\
             content-type: application/x-tar\r\ncontent-length: 99999999\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(&archive[..1 << 20]).unwrap();
        socket
    });
    let transfers = |option: &str| {
        let list = guest.shell("cat /proc/[0-9]*/cmdline 2>/dev/null; true");
        list.matches(option).count()
    };
    eventually("both run", async || transfers("--put\0") == 2).await;
    drop(leaving);
    eventually("one has ended", async || transfers("--put\0") == 1).await;
    eventually("both have ended", async || transfers("--put\0") == 0).await;
    let mut response = [0; 12];
    stalled.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"HTTP/1.1 408");
    assert_eq!(guest.shell("ls -A /a /b"), "/a:\n\n/b:\n");

    // So does a client that leaves before the end of a response.
    let mut reader = client.get_files("vm", &query).await.unwrap();
    reader.read_u8().await.unwrap();
    assert_eq!(transfers("--get\0"), 1);
    drop(reader);
    eventually("it has ended", async || transfers("--get\0") == 0).await;

    // So does one that stops reading.
    let mut stalled = UnixStream::connect(guest.home.path().join("shimd.sock")).unwrap();
    let request = b"GET /v1/boxes/vm/files?path=/put/data HTTP/1.1\r\nhost: x\r\n\r\n";
    stalled.write_all(request).unwrap();
    eventually("it runs", async || transfers("--get\0") == 1).await;
    eventually("it has ended", async || transfers("--get\0") == 0).await;

    // Whether it is a directory, as clients of the public API need it.
    let head = |path: &str| {
        let mut socket = UnixStream::connect(guest.home.path().join("shimd.sock")).unwrap();
        let request = format!(
            "GET /v1/boxes/vm/files?path={path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        socket.read_to_end(&mut response).unwrap();
        String::from_utf8_lossy(&response).into_owned()
    };
    for (path, expected) in [("/put", true), ("/put/.", true), ("/bin/busybox", false)] {
        let header = format!("x-boxlite-source-is-dir: {expected}\r\n");
        assert!(head(path).contains(&header), "{path}");
    }

    run_shimd(&guest.home, &["create", "--name", "stopped", "busybox"]).out();
    let stopped = client.get_files("stopped", &query).await;
    assert_eq!(code(&stopped.err().unwrap()), Some(ErrorCode::InvalidState));
    guest.shut_down().await;
}
