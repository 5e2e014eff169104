//! QEMU, the shim or the virtiofsd of a guest is killed, in every state of the box.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, Ending, Removal, VmmRuntime};
use vmm_shim::{QemuOptions, Share};

use crate::common::boxes::wait_for_info;
use crate::common::{eventually, is_gone, is_zombie, kill};
use crate::guest::{GuestFiles, open_runtime, spec};
use crate::shares;

/// The state of the box when the process is killed.
#[derive(Clone, Copy, Debug)]
enum State {
    Starting,
    Running,
    Stopping,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Qemu,
    Shim,
    Virtiofsd,
}

/// The processes of a run.
struct Processes {
    shim: u32,
    qemu: u32,
    /// `None` if the guest shares no directory.
    virtiofsd: Option<u32>,
}

impl Processes {
    /// Waits until the box has all of them. A box that starts does not report the pid of its payload.
    async fn of(bx: &BoxInfo) -> Self {
        let shim = bx.pid.unwrap();
        let options = QemuOptions::of(&bx.spec.payload).unwrap();
        let virtiofsd = match options.shares.is_empty() {
            true => None,
            false => Some(child_of(shim, "virtiofsd").await),
        };
        Self {
            shim,
            qemu: child_of(shim, "qemu").await,
            virtiofsd,
        }
    }

    fn kill(&self, victim: Victim) {
        let pid = match victim {
            Victim::Qemu => self.qemu,
            Victim::Shim => self.shim,
            Victim::Virtiofsd => self.virtiofsd.unwrap(),
        };
        kill(pid, Signal::SIGKILL);
    }
}

/// Waits until the process has a child whose name begins so.
async fn child_of(parent: u32, name: &str) -> u32 {
    let mut child = None;
    eventually("the child runs", || {
        let children = procfs::children(parent).unwrap_or_default();
        child = children.into_iter().find(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        });
        child.is_some()
    })
    .await;
    child.unwrap()
}

/// Starts the box, and kills the process in the state.
async fn kill_in(runtime: &VmmRuntime, id: &str, state: State, victim: Victim) -> Processes {
    if let State::Starting = state {
        let kill = async {
            let is_starting = |bx: &BoxInfo| bx.status == BoxStatus::Starting && bx.pid.is_some();
            let processes = Processes::of(&wait_for_info(runtime, id, is_starting).await).await;
            processes.kill(victim);
            processes
        };
        let (started, processes) = tokio::join!(runtime.start(id), kill);
        started.unwrap_err();
        return processes;
    }
    let processes = Processes::of(&runtime.start(id).await.unwrap()).await;
    if let State::Running = state {
        processes.kill(victim);
        return processes;
    }
    let kill = async {
        wait_for_info(runtime, id, |bx| bx.stopping).await;
        processes.kill(victim);
    };
    let (stopped, ()) = tokio::join!(runtime.stop(id), kill);
    stopped.unwrap();
    processes
}

#[tokio::test]
async fn a_killed_qemu_or_shim_ends_its_box_in_every_state_and_leaves_nothing() {
    let (Some(files), Some(agent_files)) = (GuestFiles::find(), GuestFiles::find()) else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let runs = files.guest("sleep 1000");
    // An agent that does not become ready.
    let mut boots = agent_files.guest("sleep 1000");
    boots.agent = true;
    for (state, victim, status, signal) in [
        (State::Starting, Victim::Qemu, BoxStatus::Failed, Some(9)),
        (State::Starting, Victim::Shim, BoxStatus::Failed, Some(9)),
        (State::Running, Victim::Qemu, BoxStatus::Failed, Some(9)),
        (State::Running, Victim::Shim, BoxStatus::Failed, Some(9)),
        // The guest ignores the stop.
        (State::Stopping, Victim::Qemu, BoxStatus::Stopped, Some(9)),
        (State::Stopping, Victim::Shim, BoxStatus::Stopped, Some(9)),
    ] {
        let guest = match state {
            State::Starting => &boots,
            _ => &runs,
        };
        let spec = spec(guest).stop_grace(Duration::from_secs(600));
        let id = runtime.create(spec).await.unwrap().id;
        let processes = kill_in(&runtime, id.as_str(), state, victim).await;
        let ended = runtime.wait(&id).await.unwrap();
        let case = format!("{victim:?} killed while {state:?}: {ended:?}");
        assert_eq!((ended.status, ended.signal), (status, signal), "{case}");
        let Processes { shim, qemu, .. } = processes;
        eventually("the shim is reaped", || is_gone(shim)).await;
        // If the shim was killed, QEMU is a child of init, which reaps it.
        assert!(is_gone(qemu) || is_zombie(qemu), "{case}");
        runtime.remove(&id, Removal::Force).await.unwrap();
        assert!(!ended.dir.exists(), "{case}");
    }
}

#[tokio::test]
async fn a_killed_virtiofsd_ends_its_box_in_every_state_and_leaves_nothing() {
    let (Some(files), Some(agent_files)) = (shares::find_files(), shares::find_files()) else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let dir = tempfile::tempdir().unwrap();
    let mut runs = files.guest("sleep 1000");
    runs.shares.push(Share::new("data", dir.path()));
    // An agent that does not become ready.
    let mut boots = agent_files.guest("sleep 1000");
    boots.agent = true;
    boots.shares.clone_from(&runs.shares);
    let killed = Ending::Helper {
        name: "virtiofsd of the share data".to_owned(),
        exit: Box::new(Ending::Signaled { signal: 9 }),
    };
    for (state, guest, ending) in [
        (State::Starting, &boots, Ending::ended_early(killed.clone())),
        (State::Running, &runs, killed.clone()),
        // The guest ignores the stop.
        (State::Stopping, &runs, killed.clone()),
    ] {
        let spec = spec(guest).stop_grace(Duration::from_secs(600));
        let id = runtime.create(spec).await.unwrap().id;
        let processes = kill_in(&runtime, id.as_str(), state, Victim::Virtiofsd).await;
        let ended = runtime.wait(&id).await.unwrap();
        let case = format!("killed while {state:?}: {ended:?}");
        assert_eq!(ended.ending, Some(ending), "{case}");
        // Also while it stops: the guest may not have written its data.
        assert_eq!(ended.status, BoxStatus::Failed, "{case}");
        let virtiofsd = processes.virtiofsd.unwrap();
        let pids = [processes.shim, processes.qemu, virtiofsd];
        assert!(pids.into_iter().all(is_gone), "{case}");
        runtime.remove(&id, Removal::Force).await.unwrap();
        assert!(!ended.dir.exists(), "{case}");
    }
}
