//! A host, or a container, in which no process and no thread can be made any more.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use common::boxes::{dir_of, open, sleeping, started, until};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, RuntimeError, StartError};

/// Longer than the idle threads of a pool live that makes them on demand: 10 s in tokio.
const NO_IDLE_THREAD_LEFT: Duration = Duration::from_secs(11);

/// A control group with this process in it.
struct LimitedProcesses {
    group: PathBuf,
    parent: PathBuf,
}

impl LimitedProcesses {
    /// `None`, after saying so, where no such group can be made.
    fn enter() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        // Of version 1, or of version 2.
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
        let entered = fs::create_dir(&group)
            .and_then(|()| fs::write(group.join("cgroup.procs"), process::id().to_string()))
            .and_then(|()| fs::write(group.join("pids.max"), "max"));
        if let Err(error) = entered {
            eprintln!("SKIPPED: no control group can limit processes here: {error}");
            let _ = fs::write(parent.join("cgroup.procs"), process::id().to_string());
            let _ = fs::remove_dir(&group);
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
fn an_end_is_recorded_and_operations_fail_cleanly_where_no_thread_can_be_made() {
    let test = "an_end_is_recorded_and_operations_fail_cleanly_where_no_thread_can_be_made";
    in_own_process(test, || {
        let Some(limited) = LimitedProcesses::enter() else {
            return;
        };
        let home = PerTestBoxHome::new();
        block_on(async {
            let runtime = open(&home).await;
            let running = started(&runtime, sleeping()).await;
            let idle = runtime.create(sleeping()).await.unwrap();
            tokio::time::sleep(NO_IDLE_THREAD_LEFT).await;
            // Fewer than there are: nothing can be made.
            limited.limit("1");
            std::thread::Builder::new().spawn(|| ()).unwrap_err();

            kill(running.pid.unwrap(), Signal::SIGKILL);
            until(&runtime, &running.id, BoxStatus::Failed).await;
            let record = dir_of(&home, &running.id).join("box.json");
            eventually("its end is on disk", || {
                let record = fs::read(&record).unwrap();
                let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
                !record["last"].is_null()
            })
            .await;
            let refused = runtime.start(&idle.id).await;
            assert!(
                matches!(
                    refused,
                    Err(RuntimeError::Start {
                        source: StartError::Spawn(_),
                        ..
                    })
                ),
                "{refused:?}"
            );
            let made = runtime.create(sleeping()).await.unwrap();
            runtime.remove(&made.id, false).await.unwrap();

            limited.limit("max");
            runtime.start(&idle.id).await.unwrap();
            runtime.start(&running.id).await.unwrap();
            runtime.shutdown(DEADLINE).await;
        });
    });
}
