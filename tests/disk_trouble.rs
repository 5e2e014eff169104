//! A disk that is full, read-only, or lies.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::boxes::{open, options, script, sleeping, started};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, RuntimeError, StartError, VmmRuntime};

const LIMIT: Duration = Duration::from_secs(60);

/// A small file system, to be seen by this process alone.
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

/// `None`, after saying so, where mounting is not permitted.
fn small_disk() -> Option<SmallDisk> {
    let dir = tempfile::tempdir().unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
        .and_then(|()| {
            mount(
                Some("tmpfs"),
                dir.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some("size=1m,mode=0700"),
            )
        });
    match mounted {
        Ok(()) => Some(SmallDisk(dir)),
        Err(error) => {
            eprintln!("SKIPPED: mounting is not permitted here: {error}");
            None
        }
    }
}

fn fill(home: &Path) -> PathBuf {
    let path = home.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    path
}

fn assert_names_a_file(error: &RuntimeError, below: &Path) {
    let named = match error {
        RuntimeError::File(error) => &error.path,
        RuntimeError::Start {
            source: StartError::File(error),
            ..
        } => &error.path,
        other => panic!("{other:?}"),
    };
    assert!(named.starts_with(below), "{}", named.display());
    assert!(error.to_string().contains(named.to_str().unwrap()));
}

#[test]
fn a_full_disk_fails_what_needs_it_and_nothing_else() {
    in_own_process("a_full_disk_fails_what_needs_it_and_nothing_else", || {
        let Some(disk) = small_disk() else {
            return;
        };
        let home = disk.home();
        block_on(async {
            let runtime = VmmRuntime::open(options(&home)).await.unwrap();
            let running = started(&runtime, sleeping()).await;
            let doomed = started(&runtime, sleeping()).await;
            let idle = runtime.create(sleeping()).await.unwrap().id;
            let filler = fill(&home);

            let error = runtime.create(sleeping().name("new")).await.unwrap_err();
            assert_names_a_file(&error, &home);
            assert_eq!(runtime.list().await.len(), 3);
            let error = runtime.start(&idle).await.unwrap_err();
            assert!(error.to_string().contains("shim.pid"), "{error}");
            // A death is known all the same, and so is a stop.
            kill(doomed.pid.unwrap(), Signal::SIGKILL);
            let ended = runtime.wait(&doomed.id).await.unwrap();
            assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
            let stopped = runtime.stop(&running.id).await.unwrap();
            assert_eq!(
                (stopped.status, stopped.exit_code),
                (BoxStatus::Stopped, Some(143))
            );
            // Removing needs no room.
            runtime.remove(&doomed.id, false).await.unwrap();

            fs::remove_file(filler).unwrap();
            runtime.create(sleeping().name("new")).await.unwrap();
            let again = runtime.start(&idle).await.unwrap();
            assert_eq!(again.status, BoxStatus::Running);
            runtime.remove(&idle, true).await.unwrap();
            assert!(is_gone(again.pid.unwrap()));
            runtime.shutdown(LIMIT).await;
        });
    });
}

/// The shim stores the output, and drops what it cannot store.
#[test]
fn a_full_disk_neither_blocks_nor_ends_a_payload_that_prints() {
    in_own_process(
        "a_full_disk_neither_blocks_nor_ends_a_payload_that_prints",
        || {
            let Some(disk) = small_disk() else {
                return;
            };
            let home = disk.home();
            let elsewhere = tempfile::tempdir().unwrap();
            let print = "cd $DIR && head -c 4194304 /dev/zero && touch printed || exit 1
                while [ ! -e go ]; do sleep 0.01; done; echo; echo after; exit 7";
            let spec = script(print).env("DIR", elsewhere.path().to_str().unwrap());
            block_on(async {
                let runtime = VmmRuntime::open(options(&home)).await.unwrap();
                let id = started(&runtime, spec).await.id;
                let printed = elsewhere.path().join("printed");
                eventually("all is printed", || printed.exists()).await;
                let console = home.join("boxes").join(&id).join("console.log");
                fs::File::create(&console).unwrap();
                fs::File::create(elsewhere.path().join("go")).unwrap();
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
                runtime.remove(&id, true).await.unwrap();
                runtime.shutdown(LIMIT).await;
            });
        },
    );
}

#[test]
fn an_end_that_a_full_disk_refuses_is_saved_when_there_is_room() {
    in_own_process(
        "an_end_that_a_full_disk_refuses_is_saved_when_there_is_room",
        || {
            let Some(disk) = small_disk() else {
                return;
            };
            let home = disk.home();
            block_on(async {
                let runtime = VmmRuntime::open(options(&home)).await.unwrap();
                let doomed = started(&runtime, sleeping()).await;
                let filler = fill(&home);
                kill(doomed.payload_pid.unwrap(), Signal::SIGKILL);
                // It is reported nevertheless.
                let ended = runtime.wait(&doomed.id).await.unwrap();
                assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
                runtime.stop(&doomed.id).await.unwrap();
                fs::remove_file(filler).unwrap();
                let record = home.join("boxes").join(&doomed.id).join("box.json");
                eventually("the end is saved", || {
                    fs::read_to_string(&record).unwrap().contains("signaled")
                })
                .await;
                runtime.shutdown(LIMIT).await;
            });
        },
    );
}

#[test]
fn a_read_only_disk_is_an_error_that_names_the_file() {
    in_own_process("a_read_only_disk_is_an_error_that_names_the_file", || {
        let Some(disk) = small_disk() else {
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
            // What is open for writing keeps a disk from being made read-only.
            runtime.shutdown(LIMIT).await;
            remount(MsFlags::MS_RDONLY);
            let error = VmmRuntime::open(options(&home)).await.unwrap_err();
            assert_names_a_file(&error, &home);
            remount(MsFlags::empty());
            let runtime = VmmRuntime::open(options(&home)).await.unwrap();
            assert_eq!(runtime.info("kept").await.unwrap().id, idle);
        });
    });
}

#[tokio::test]
async fn a_box_that_cannot_be_removed_is_named_and_goes_on() {
    let home = vmm_runtime::testing::PerTestBoxHome::new();
    let runtime = common::boxes::open(&home).await;
    let id = runtime.create(sleeping()).await.unwrap().id;
    let dir = common::boxes::dir_of(&home, &id);
    // Where it is moved before it is deleted.
    let in_the_way = dir.with_file_name(format!(".removing-{id}"));
    fs::create_dir_all(in_the_way.join("full")).unwrap();
    let error = runtime.remove(&id, false).await.unwrap_err();
    assert_names_a_file(&error, &dir);
    runtime.start(&id).await.unwrap();
    fs::remove_dir_all(&in_the_way).unwrap();
    runtime.remove(&id, true).await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_box_whose_files_cannot_be_replaced_names_the_one_and_others_go_on() {
    let home = vmm_runtime::testing::PerTestBoxHome::new();
    let runtime = common::boxes::open(&home).await;
    let odd = runtime.create(sleeping()).await.unwrap().id;
    let other = runtime.create(sleeping()).await.unwrap().id;
    // Not even root can replace a directory by a file.
    let pid_file = common::boxes::dir_of(&home, &odd).join("shim.pid");
    fs::create_dir(&pid_file).unwrap();
    let error = runtime.start(&odd).await.unwrap_err();
    assert!(
        error.to_string().contains(pid_file.to_str().unwrap()),
        "{error}"
    );
    runtime.start(&other).await.unwrap();
    fs::remove_dir(&pid_file).unwrap();
    runtime.start(&odd).await.unwrap();
    runtime.shutdown(LIMIT).await;
}

/// Who opens one waits for somebody at its other end.
#[tokio::test]
async fn fifos_that_a_payload_puts_in_place_of_its_boxs_files_hold_nobody_up() {
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
        let runtime = open(&home).await;
        for name in names {
            let replace = format!("cd $VMM_BOX_DIR; rm -f {name}; mkfifo {name}; exit 3");
            let id = runtime.create(script(&replace)).await.unwrap().id;
            // Some can be started again, some cannot.
            for _ in 0..2 {
                if runtime.start(&id).await.is_ok() {
                    runtime.wait(&id).await.unwrap();
                }
            }
        }
        runtime.shutdown(DEADLINE).await;
        let runtime = open(&home).await;
        for left in runtime.list().await {
            runtime.remove(&left.id, true).await.unwrap();
        }
        runtime.shutdown(DEADLINE).await
    };
    tokio::time::timeout(DEADLINE, all).await.expect("held up");
}
