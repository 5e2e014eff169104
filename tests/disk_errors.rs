//! Boxes on a disk that is full or read-only, and files that cannot be replaced.

mod common;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::boxes::{open_runtime, options, script, sleeping, start_box};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Removal, RuntimeError, StartError, VmmRuntime, with_causes};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// A small file system that only this process sees.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn home(&self) -> PathBuf {
        self.0.path().join("home")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Mounts a disk of 1 MiB. Returns `None`, after a note on stderr, where mounting is not permitted.
fn mount_small_disk() -> Option<SmallDisk> {
    mount_disk("size=1m")
}

/// Mounts a tmpfs with this limit, as [`mount_small_disk`] does.
fn mount_disk(limit: &str) -> Option<SmallDisk> {
    let dir = tempfile::tempdir().unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let result = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
        .and_then(|()| {
            mount(
                Some("tmpfs"),
                dir.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(&*format!("{limit},mode=0700")),
            )
        });
    match result {
        Ok(()) => Some(SmallDisk(dir)),
        Err(error) => {
            common::skip(format_args!("this test needs permission to mount: {error}"));
            None
        }
    }
}

/// Fills the disk with one file, and returns its path.
fn fill(home: &Path) -> PathBuf {
    let path = home.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    path
}

/// Uses up the inodes of the disk with links in one directory, and returns its path.
fn use_up_inodes(home: &Path) -> PathBuf {
    let path = home.join("filler");
    fs::create_dir(&path).unwrap();
    let mut names = (0..).map(|number: u32| path.join(number.to_string()));
    while symlink("/", names.next().unwrap()).is_ok() {}
    path
}

fn assert_names_file_below(error: &RuntimeError, below: &Path) {
    let path = match error {
        RuntimeError::File(error) => &error.path,
        RuntimeError::Start {
            source: StartError::File(error),
            ..
        } => &error.path,
        other => panic!("{other:?}"),
    };
    assert!(path.starts_with(below), "{}", path.display());
    assert!(with_causes(error).contains(path.to_str().unwrap()));
}

#[test]
fn a_full_disk_fails_only_operations_that_write() {
    in_own_process("a_full_disk_fails_only_operations_that_write", || {
        let Some(disk) = mount_small_disk() else {
            return;
        };
        let home = disk.home();
        block_on(async {
            let runtime = VmmRuntime::open(options(&home)).await.unwrap();
            let bx = start_box(&runtime, sleeping()).await;
            let victim = start_box(&runtime, sleeping()).await;
            let idle = runtime.create(sleeping()).await.unwrap().id;
            let filler = fill(&home);

            let error = runtime.create(sleeping().name("new")).await.unwrap_err();
            assert_names_file_below(&error, &home);
            assert_eq!(runtime.list().await.len(), 3);
            let error = runtime.start(&idle).await.unwrap_err();
            assert!(with_causes(&error).contains("shim.pid"), "{error:?}");
            // The VMM runtime still notices a death, and can stop a box.
            kill(victim.pid.unwrap(), Signal::SIGKILL);
            let ended = runtime.wait(&victim.id).await.unwrap();
            assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
            let stopped = runtime.stop(&bx.id).await.unwrap();
            assert_eq!(
                (stopped.status, stopped.exit_code),
                (BoxStatus::Stopped, Some(143))
            );
            // A removal needs no disk space.
            runtime.remove(&victim.id, Removal::Ended).await.unwrap();

            fs::remove_file(filler).unwrap();
            runtime.create(sleeping().name("new")).await.unwrap();
            let again = runtime.start(&idle).await.unwrap();
            assert_eq!(again.status, BoxStatus::Running);
            runtime.remove(&idle, Removal::Force).await.unwrap();
            assert!(is_gone(again.pid.unwrap()));
            runtime.shutdown(SHUTDOWN_TIMEOUT).await;
        });
    });
}

/// The shim stores the output, and drops the part that it cannot store.
#[test]
fn a_full_disk_neither_blocks_nor_ends_a_printing_payload() {
    in_own_process(
        "a_full_disk_neither_blocks_nor_ends_a_printing_payload",
        || {
            let Some(disk) = mount_small_disk() else {
                return;
            };
            let home = disk.home();
            let other_disk = tempfile::tempdir().unwrap();
            let print = "cd $DIR && head -c 4194304 /dev/zero && touch printed || exit 1
                while [ ! -e go ]; do sleep 0.01; done; echo; echo after; exit 7";
            let spec = script(print).env("DIR", other_disk.path().to_str().unwrap());
            block_on(async {
                let runtime = VmmRuntime::open(options(&home)).await.unwrap();
                let id = start_box(&runtime, spec).await.id;
                let printed = other_disk.path().join("printed");
                eventually("the payload prints all", || printed.exists()).await;
                let console = home.join("boxes").join(&id).join("console.log");
                fs::File::create(&console).unwrap();
                fs::File::create(other_disk.path().join("go")).unwrap();
                let ended = runtime.wait(&id).await.unwrap();
                assert_eq!(ended.exit_code, Some(7));
                let text = fs::read_to_string(&console).unwrap();
                assert!(text.ends_with("\nafter\n"));
                let marker = text.lines().find_map(|line| {
                    let count = line.strip_prefix("[vmm-shim: ")?;
                    count.strip_suffix(" bytes dropped]")
                });
                let count: u64 = marker.unwrap().parse().unwrap();
                assert!((2 << 20..4 << 20).contains(&count), "{count}");
                runtime.remove(&id, Removal::Force).await.unwrap();
                runtime.shutdown(SHUTDOWN_TIMEOUT).await;
            });
        },
    );
}

#[test]
fn an_ending_is_saved_when_a_full_disk_has_space_again() {
    in_own_process(
        "an_ending_is_saved_when_a_full_disk_has_space_again",
        || {
            let Some(disk) = mount_small_disk() else {
                return;
            };
            let home = disk.home();
            block_on(async {
                let runtime = VmmRuntime::open(options(&home)).await.unwrap();
                let victim = start_box(&runtime, sleeping()).await;
                let filler = fill(&home);
                kill(victim.payload_pid.unwrap(), Signal::SIGKILL);
                // The VMM runtime still reports the ending.
                let ended = runtime.wait(&victim.id).await.unwrap();
                assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
                runtime.stop(&victim.id).await.unwrap();
                fs::remove_file(filler).unwrap();
                let record = home.join("boxes").join(&victim.id).join("box.json");
                eventually("the ending is saved", || {
                    fs::read_to_string(&record).unwrap().contains("signaled")
                })
                .await;
                runtime.shutdown(SHUTDOWN_TIMEOUT).await;
            });
        },
    );
}

#[test]
fn opening_a_home_on_a_read_only_disk_names_the_file() {
    in_own_process("opening_a_home_on_a_read_only_disk_names_the_file", || {
        let Some(disk) = mount_small_disk() else {
            return;
        };
        let home = disk.home();
        let remount = |flags: MsFlags| {
            let disk = home.parent().unwrap();
            let flags = flags | MsFlags::MS_REMOUNT;
            mount(None::<&str>, disk, None::<&str>, flags, None::<&str>).unwrap();
        };
        block_on(async {
            let runtime = VmmRuntime::open(options(&home)).await.unwrap();
            let idle = runtime.create(sleeping().name("kept")).await.unwrap().id;
            // A disk with a file open for writing cannot become read-only.
            runtime.shutdown(SHUTDOWN_TIMEOUT).await;
            remount(MsFlags::MS_RDONLY);
            let error = VmmRuntime::open(options(&home)).await.unwrap_err();
            assert_names_file_below(&error, &home);
            remount(MsFlags::empty());
            let runtime = VmmRuntime::open(options(&home)).await.unwrap();
            assert_eq!(runtime.info("kept").await.unwrap().id, idle);
        });
    });
}

#[tokio::test]
async fn a_failed_removal_names_the_directory_and_keeps_the_box() {
    let home = vmm_runtime::testing::PerTestBoxHome::new();
    let runtime = common::boxes::open_runtime(&home).await;
    let id = runtime.create(sleeping()).await.unwrap().id;
    let dir = common::boxes::box_dir(&home, &id);
    // A removal first renames the directory to this path.
    let obstacle = dir.with_file_name(format!(".removing-{id}"));
    fs::create_dir_all(obstacle.join("full")).unwrap();
    let error = runtime.remove(&id, Removal::Ended).await.unwrap_err();
    assert_names_file_below(&error, &dir);
    runtime.start(&id).await.unwrap();
    fs::remove_dir_all(&obstacle).unwrap();
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_start_that_cannot_write_a_file_names_it_and_other_boxes_work() {
    let home = vmm_runtime::testing::PerTestBoxHome::new();
    let runtime = common::boxes::open_runtime(&home).await;
    let blocked = runtime.create(sleeping()).await.unwrap().id;
    let other = runtime.create(sleeping()).await.unwrap().id;
    // Not even root can replace a directory with a file.
    let pid_file = common::boxes::box_dir(&home, &blocked).join("shim.pid");
    fs::create_dir(&pid_file).unwrap();
    let error = runtime.start(&blocked).await.unwrap_err();
    assert!(
        with_causes(&error).contains(pid_file.to_str().unwrap()),
        "{error:?}"
    );
    runtime.start(&other).await.unwrap();
    fs::remove_dir(&pid_file).unwrap();
    runtime.start(&blocked).await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
}

/// open(2) on a FIFO blocks until another process opens the other end.
#[tokio::test]
async fn fifos_in_place_of_box_files_block_no_operation() {
    let home = PerTestBoxHome::new();
    let names = [
        "box.json",
        ".box.json.tmp",
        "shim.pid",
        "payload.pid",
        "cgroup",
        "exit",
        ".exit.tmp",
        "shim.stderr",
        "console.log",
        "console.log.1",
        "console.dropped",
        ".console.dropped.tmp",
    ];
    let all = async {
        let runtime = open_runtime(&home).await;
        for name in names {
            let replace = format!("cd $VMM_BOX_DIR; rm -f {name}; mkfifo {name}; exit 3");
            let id = runtime.create(script(&replace)).await.unwrap().id;
            // Some of these boxes can start again, some cannot.
            for _ in 0..2 {
                if runtime.start(&id).await.is_ok() {
                    runtime.wait(&id).await.unwrap();
                }
            }
        }
        runtime.shutdown(DEADLINE).await;
        let runtime = open_runtime(&home).await;
        for bx in runtime.list().await {
            runtime.remove(&bx.id, Removal::Force).await.unwrap();
        }
        runtime.shutdown(DEADLINE).await
    };
    tokio::time::timeout(DEADLINE, all)
        .await
        .expect("an operation blocks");
}

#[test]
fn below_the_reserve_boxes_keep_running_but_no_further_ones_start() {
    let name = "below_the_reserve_boxes_keep_running_but_no_further_ones_start";
    in_own_process(name, || {
        let Some(disk) = mount_small_disk() else {
            return;
        };
        block_on(check_reserve(
            &disk.home(),
            fill,
            |path| fs::remove_file(path),
            |error| matches!(error, RuntimeError::DiskFull { .. }),
        ));
    });
}

#[test]
fn the_reserve_has_inodes() {
    in_own_process("the_reserve_has_inodes", || {
        let Some(disk) = mount_disk("nr_inodes=100") else {
            return;
        };
        block_on(check_reserve(
            &disk.home(),
            use_up_inodes,
            |path| fs::remove_dir_all(path),
            |error| matches!(error, RuntimeError::OutOfInodes { reserve: 16, .. }),
        ));
    });
}

/// Checks what is refused, and what is not, while `fill` leaves less than the reserve of the disk.
async fn check_reserve(
    home: &Path,
    fill: fn(&Path) -> PathBuf,
    remove_filler: fn(&Path) -> io::Result<()>,
    is_expected: fn(&RuntimeError) -> bool,
) {
    let open = || VmmRuntime::open(options(home).disk_reserve(256 << 10));
    let runtime = open().await.unwrap();
    let running = start_box(&runtime, sleeping()).await;
    let created = runtime.create(sleeping()).await.unwrap();
    let filler = fill(home);
    let mut refused = vec![
        runtime.create(sleeping()).await.map(|_| ()),
        runtime.start(&created.id).await.map(|_| ()),
    ];
    let again = runtime.start(&running.id).await.unwrap();
    assert_eq!(again.pid, running.pid);
    let stopped = runtime.stop(&running.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    runtime.remove(&running.id, Removal::Ended).await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    refused.push(open().await.map(|_| ()));
    for result in refused {
        let error = result.unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }

    remove_filler(&filler).unwrap();
    let runtime = open().await.unwrap();
    runtime.start(&created.id).await.unwrap();
    runtime.remove(&created.id, Removal::Force).await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
}
