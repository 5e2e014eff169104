//! A VMM runtime on a host where no process or thread can start.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use common::boxes::{box_dir, open_runtime, sleeping, start_box, wait_for_status};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Removal, RuntimeError, StartError};

/// Longer than tokio keeps an idle thread of its blocking pool, which is 10 s.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(11);

/// A control group that contains this process.
struct LimitedProcesses {
    group: PathBuf,
    parent: PathBuf,
}

impl LimitedProcesses {
    /// Moves this process to a new control group. Returns `None`, after a note on stderr, where that is
    /// not possible.
    fn enter() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        // In version 1 or version 2.
        let own = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let root = match controllers {
                "" => Path::new("/sys/fs/cgroup"),
                _ if controllers.split(',').any(|name| name == "pids") => {
                    Path::new("/sys/fs/cgroup/pids")
                }
                _ => return None,
            };
            let own = root.join(path.trim_start_matches('/'));
            own.join("cgroup.procs").exists().then_some(own)
        });
        let parent = own.unwrap_or_default();
        let group = parent.join(format!("vmm-test-{}", process::id()));
        let result = fs::create_dir(&group)
            .and_then(|()| fs::write(group.join("cgroup.procs"), process::id().to_string()))
            .and_then(|()| fs::write(group.join("pids.max"), "max"));
        if let Err(error) = result {
            let _ = fs::write(parent.join("cgroup.procs"), process::id().to_string());
            let _ = fs::remove_dir(&group);
            common::skip(format_args!(
                "this test needs a control group that limits processes: {error}"
            ));
            return None;
        }
        Some(Self { group, parent })
    }

    fn limit(&self, processes: &str) {
        fs::write(self.group.join("pids.max"), processes).unwrap();
    }
}

impl Drop for LimitedProcesses {
    fn drop(&mut self) {
        let _ = fs::write(self.parent.join("cgroup.procs"), process::id().to_string());
        let _ = fs::remove_dir(&self.group);
    }
}

#[test]
fn without_threads_endings_are_recorded_and_starts_fail_cleanly() {
    let test = "without_threads_endings_are_recorded_and_starts_fail_cleanly";
    in_own_process(test, || {
        let Some(limited) = LimitedProcesses::enter() else {
            return;
        };
        let home = PerTestBoxHome::new();
        block_on(async {
            let runtime = open_runtime(&home).await;
            let running = start_box(&runtime, sleeping()).await;
            let idle = runtime.create(sleeping()).await.unwrap();
            tokio::time::sleep(IDLE_THREAD_TIMEOUT).await;
            // The group has more threads already, so none can start.
            limited.limit("1");
            std::thread::Builder::new().spawn(|| ()).unwrap_err();

            kill(running.pid.unwrap(), Signal::SIGKILL);
            wait_for_status(&runtime, &running.id, BoxStatus::Failed).await;
            let record = box_dir(&home, &running.id).join("box.json");
            eventually("the ending is on disk", || {
                let record = fs::read(&record).unwrap();
                let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
                !record["last"].is_null()
            })
            .await;
            let result = runtime.start(&idle.id).await;
            assert!(
                matches!(
                    result,
                    Err(RuntimeError::Start {
                        source: StartError::Spawn(_),
                        ..
                    })
                ),
                "{result:?}"
            );
            let bx = runtime.create(sleeping()).await.unwrap();
            runtime.remove(&bx.id, Removal::Ended).await.unwrap();

            limited.limit("max");
            runtime.start(&idle.id).await.unwrap();
            runtime.start(&running.id).await.unwrap();
            runtime.shutdown(DEADLINE).await;
        });
    });
}
