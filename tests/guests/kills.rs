//! QEMU, the shim, the agent or the virtiofsd of a guest is killed, in every state of the box.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxInfo, BoxSpec, BoxStatus, ControlGroup, Ending, ExecError, ExecSpec, Execution, GuestEvent,
    Removal, VmmRuntime,
};
use vmm_shim::{QemuOptions, Share};

use crate::common::boxes::wait_for_info;
use crate::common::{eventually, is_gone, is_zombie, kill};
use crate::guest::{GuestFiles, open_runtime, spec};
use crate::shares;

/// The state of the box when the process is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Starting,
    Running,
    /// Running, with a command beside the payload.
    Executing,
    Paused,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Qemu,
    Shim,
    /// The first process of the guest.
    Agent,
    Virtiofsd,
}

/// How many guests run at a time.
const GUESTS_AT_ONCE: usize = 3;

const KILLED: Ending = Ending::Signaled { signal: 9 };

/// The kernel of a guest panics when its first process ends.
const PANICKED: Ending = Ending::Guest {
    event: GuestEvent::Panicked,
};

/// Overwrites the code of the first process, which no signal ends. The variable `proc` is where `/proc` is.
const KILL_AGENT: &str = "
while read -r range permissions rest; do
    case $permissions in
    r-x*)
        start=$((0x${range%-*} / 4096)) end=$((0x${range#*-} / 4096))
        busybox dd if=/dev/zero of=$proc/1/mem bs=4096 seek=$start count=$((end - start)) conv=notrunc
        break
    esac
done <$proc/1/maps";

/// The processes of a run on this host.
struct Processes {
    shim: u32,
    qemu: u32,
    /// `None` if the guest shares no directory.
    virtiofsd: Option<u32>,
    /// Their control groups, if the host has some.
    groups: Vec<PathBuf>,
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
        let qemu = child_of(shim, "qemu").await;
        let groups = fs::read_to_string(bx.dir.join(vmm_protocol::FILES.control_group));
        let groups = groups.unwrap_or_default();
        Self {
            shim,
            qemu,
            virtiofsd,
            groups: groups.lines().map(PathBuf::from).collect(),
        }
    }

    fn kill(&self, victim: Victim) {
        let pid = match victim {
            Victim::Qemu => self.qemu,
            Victim::Shim => self.shim,
            // The guest kills it.
            Victim::Agent => return,
            Victim::Virtiofsd => self.virtiofsd.unwrap(),
        };
        kill(pid, Signal::SIGKILL);
    }
}

/// Waits until the process has a child whose name begins so.
pub async fn child_of(parent: u32, name: &str) -> u32 {
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

/// Starts a command that kills the agent when its stdin ends, or when it is asked to end. A signal that comes
/// before the `wait` interrupts it too, which is not true of `read`.
async fn start_command(runtime: &VmmRuntime, id: &str) -> Execution {
    let script = format!(
        "proc=/proc; kill_agent() {{ {KILL_AGENT}
         }}; trap kill_agent TERM; exec 3<&0; read -r line <&3 & echo up
         wait $!; kill_agent; while :; do sleep 1; done"
    );
    let mut command = ExecSpec::new("", ["sh", "-c", &script]);
    command.stdin = true;
    let mut execution = runtime.exec(id, command).await.unwrap();
    let mut up = [0; 3];
    let stdout = execution.stdout.as_mut().unwrap();
    stdout.read_exact(&mut up).await.unwrap();
    execution
}

/// Returns the options of a guest whose agent dies when it has opened its port.
fn agent_that_dies(files: &GuestFiles) -> QemuOptions {
    files.guest_with_agent_after(&format!(
        "proc=/processes
         busybox mknod /dev/null c 1 3; busybox mknod /dev/zero c 1 5
         busybox mkdir $proc; busybox mount -t proc proc $proc
         {{
             until busybox ls -l $proc/1/fd | busybox grep -q vport; do busybox usleep 10000; done
             {KILL_AGENT}
         }} >/dev/null 2>&1 &
         exec /agent"
    ))
}

/// Starts the box, and kills the process in the state.
async fn kill_in(runtime: &VmmRuntime, id: &str, state: State, victim: Victim) -> Processes {
    if state == State::Starting {
        let kill = async {
            let is_starting = |bx: &BoxInfo| bx.status == BoxStatus::Starting && bx.pid.is_some();
            let bx = wait_for_info(runtime, id, is_starting).await;
            let processes = Processes::of(&bx).await;
            if victim == Victim::Agent {
                // The shim cannot report that the box is ready before the agent has died.
                let started = bx.dir.join(vmm_protocol::FILES.payload_pid);
                eventually("the shim has started QEMU", || started.exists()).await;
                kill(processes.shim, Signal::SIGSTOP);
                eventually("QEMU has ended", || is_zombie(processes.qemu)).await;
                kill(processes.shim, Signal::SIGCONT);
            }
            processes.kill(victim);
            processes
        };
        let (started, processes) = tokio::join!(runtime.start(id), kill);
        started.unwrap_err();
        return processes;
    }
    let processes = Processes::of(&runtime.start(id).await.unwrap()).await;
    let execution = if state == State::Executing || victim == Victim::Agent {
        Some(start_command(runtime, id).await)
    } else {
        None
    };
    if state == State::Stopping {
        let kill = async {
            wait_for_info(runtime, id, |bx| bx.stopping).await;
            processes.kill(victim);
        };
        let (stopped, ()) = tokio::join!(runtime.stop(id), kill);
        stopped.unwrap();
        return processes;
    }
    if state == State::Paused {
        runtime.pause(id).await.unwrap();
    }
    processes.kill(victim);
    if let Some(mut execution) = execution {
        // Closes its stdin.
        drop(execution.stdin.take());
        if state == State::Paused && victim == Victim::Agent {
            runtime.resume(id).await.unwrap();
        }
        let ended = execution.wait().await;
        match victim {
            Victim::Shim => assert!(matches!(ended, Err(ExecError::Interrupted)), "{ended:?}"),
            _ => assert!(matches!(ended, Ok(Ending::Failed { .. })), "{ended:?}"),
        }
    }
    processes
}

#[tokio::test]
async fn a_killed_qemu_shim_or_agent_ends_its_box_in_every_state_and_leaves_nothing() {
    let find = GuestFiles::find;
    let (Some(files), Some(agent_files), Some(dying_files)) = (find(), find(), find()) else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let without_agent = files.guest("sleep 1000");
    let mut never_ready = agent_files.guest("sleep 1000");
    never_ready.agent = true;
    let with_agent = agent_files.guest_with_agent();
    let dies_early = agent_that_dies(&dying_files);
    let cases = [
        (State::Starting, Victim::Qemu, BoxStatus::Failed, KILLED),
        (State::Starting, Victim::Shim, BoxStatus::Failed, KILLED),
        (State::Starting, Victim::Agent, BoxStatus::Failed, PANICKED),
        (State::Running, Victim::Qemu, BoxStatus::Failed, KILLED),
        (State::Running, Victim::Shim, BoxStatus::Failed, KILLED),
        (State::Executing, Victim::Qemu, BoxStatus::Failed, KILLED),
        (State::Executing, Victim::Shim, BoxStatus::Failed, KILLED),
        (State::Executing, Victim::Agent, BoxStatus::Failed, PANICKED),
        (State::Paused, Victim::Qemu, BoxStatus::Failed, KILLED),
        (State::Paused, Victim::Shim, BoxStatus::Failed, KILLED),
        // Nothing runs in a paused guest: the agent dies when the guest is resumed.
        (State::Paused, Victim::Agent, BoxStatus::Failed, PANICKED),
        // The guest ignores the stop.
        (State::Stopping, Victim::Qemu, BoxStatus::Stopped, KILLED),
        (State::Stopping, Victim::Shim, BoxStatus::Stopped, KILLED),
        (State::Stopping, Victim::Agent, BoxStatus::Failed, PANICKED),
    ];
    let check = |(state, victim, status, ending)| {
        let spec = match (state, victim) {
            (State::Starting, Victim::Agent) => {
                let mut spec = spec(&dies_early);
                spec.payload.command = vec!["sleep".to_owned(), "1000".to_owned()];
                spec
            }
            (State::Starting, _) => spec(&never_ready),
            (State::Executing, _) | (_, Victim::Agent) => spec(&with_agent),
            _ => spec(&without_agent),
        };
        // On the heap, because the stack of a test is small.
        check_kill(&runtime, spec, (state, victim), status, ending).boxed_local()
    };
    let checks = stream::iter(cases).map(check);
    checks
        .buffer_unordered(GUESTS_AT_ONCE)
        .collect::<()>()
        .await;
}

async fn check_kill(
    runtime: &VmmRuntime,
    spec: BoxSpec,
    (state, victim): (State, Victim),
    status: BoxStatus,
    ending: Ending,
) {
    let spec = spec.stop_grace(Duration::from_secs(600));
    let id = runtime.create(spec).await.unwrap().id;
    let processes = kill_in(runtime, id.as_str(), state, victim).await;
    let ended = runtime.wait(&id).await.unwrap();
    let case = format!("{victim:?} killed while {state:?}: {ended:?}");
    // A shim that was killed, or a start that failed, has no ending of its own.
    let found = ended.ending.clone().map(|ending| match ending {
        Ending::EndedEarly { exit } => *exit,
        ending => ending,
    });
    let found = found.or(ended.signal.map(|signal| Ending::Signaled { signal }));
    assert_eq!(
        (ended.status, found.as_ref()),
        (status, Some(&ending)),
        "{case}"
    );
    let Processes {
        shim,
        qemu,
        virtiofsd,
        groups,
    } = processes;
    eventually("the shim is reaped", || is_gone(shim)).await;
    // If the shim was killed, they are children of init, which reaps them.
    for pid in [Some(qemu), virtiofsd].into_iter().flatten() {
        assert!(is_gone(pid) || is_zombie(pid), "{case}");
    }
    assert!(
        !groups.is_empty() || ControlGroup::check().is_err(),
        "{case}"
    );
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{case}: {left:?}");
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert!(!ended.dir.exists(), "{case}");
}

#[tokio::test]
async fn a_guest_with_a_share_ends_with_its_processes_in_every_state_and_leaves_nothing() {
    let find = shares::find_files;
    let (Some(files), Some(agent_files), Some(silent_files)) = (find(), find(), find()) else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let dir = tempfile::tempdir().unwrap();
    let sharing = |mut guest: QemuOptions| {
        guest.shares.push(Share::new("data", dir.path()));
        guest
    };
    let without_agent = sharing(files.guest("sleep 1000"));
    let mut never_ready = sharing(silent_files.guest("sleep 1000"));
    never_ready.agent = true;
    let with_agent = sharing(agent_files.guest_with_agent());
    let helper = Ending::Helper {
        name: "virtiofsd of the share data".to_owned(),
        exit: Box::new(KILLED),
    };
    let cases = [
        (State::Starting, Victim::Virtiofsd),
        (State::Running, Victim::Virtiofsd),
        (State::Executing, Victim::Virtiofsd),
        (State::Paused, Victim::Virtiofsd),
        // The guest ignores the stop, and may not have written its data.
        (State::Stopping, Victim::Virtiofsd),
        (State::Starting, Victim::Qemu),
        (State::Running, Victim::Qemu),
        (State::Executing, Victim::Qemu),
        (State::Paused, Victim::Qemu),
        (State::Stopping, Victim::Qemu),
        (State::Starting, Victim::Shim),
        (State::Executing, Victim::Shim),
        (State::Stopping, Victim::Shim),
    ];
    let check = |(state, victim)| {
        let guest = match state {
            State::Starting => &never_ready,
            State::Executing => &with_agent,
            _ => &without_agent,
        };
        let ending = match victim {
            Victim::Virtiofsd => helper.clone(),
            _ => KILLED,
        };
        let status = match (state, victim) {
            (_, Victim::Virtiofsd) => BoxStatus::Failed,
            (State::Stopping, _) => BoxStatus::Stopped,
            _ => BoxStatus::Failed,
        };
        check_kill(&runtime, spec(guest), (state, victim), status, ending).boxed_local()
    };
    let checks = stream::iter(cases).map(check);
    checks
        .buffer_unordered(GUESTS_AT_ONCE)
        .collect::<()>()
        .await;
}
