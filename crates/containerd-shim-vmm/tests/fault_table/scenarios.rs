use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use crate::common::{assert_success, eventually};
use crate::fixture::{Fixture, Runtime, STALL};
use crate::leftovers::{Baseline, Groups, groups_of};
use crate::losses::Row;

/// How many more descriptors containerd may have after the last pod than after the first.
const MAX_NEW_DESCRIPTORS: usize = 2;

/// How much more memory, in MiB, containerd may have then. It has 41 MiB after the first pod, and Go lets the heap double before
/// it collects what is free. What containerd keeps of each pod is found among 500, if it exceeds 0.1 MiB.
const MAX_NEW_MIB: u64 = 50;

const CODE: u64 = 42;
const KILLED: u64 = 137;
const TERMINATED: u64 = 143;

/// What happens to containers.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Kill(Victim, State),
    /// The consumer of events is stopped while processes exit.
    Stall {
        exits: usize,
    },
    /// Many containers, without a fault.
    Sequence {
        pods: usize,
    },
}

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Containerd,
    Shim,
    Both,
}

/// What the container does at that time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Paused,
    /// A second process runs in it.
    Executing,
    /// It has exited, and containerd has the event.
    Stopped,
    /// It has exited, and containerd does not read events.
    Unreported,
    Deleting,
}

impl Fault {
    /// Lets it happen to a container of this runtime.
    pub(crate) fn run(self, fixture: &mut Fixture, runtime: Runtime) -> Row {
        let mut row = Row::new(self.to_string(), runtime);
        let baseline = Baseline::take(fixture, runtime);
        let (id, groups) = match self {
            Self::Kill(victim, state) => kill(fixture, &mut row, victim, state),
            Self::Stall { exits } => exits_during_stall(fixture, &mut row, exits),
            Self::Sequence { pods } => pods_in_sequence(fixture, &mut row, pods),
        };
        fixture.remove(&id);
        if matches!(self, Self::Kill(_, State::Starting)) {
            // The next start removes what a server leaves that containerd does not know.
            let next = fixture.new_id();
            let mut run = fixture.run_command(runtime, &next, &["--rm"], "true");
            assert!(run.status().unwrap().success(), "{next}");
        }
        let leftovers = baseline.leftovers(fixture, runtime, &id, &groups);
        row.leftovers.extend(leftovers);
        row
    }

    /// Whether containerd reports an exit again that it has reported: it does when the shim of a task that it
    /// knows has ended. One that is restarted knows a task whose deletion it had begun.
    pub(crate) fn may_repeat(self) -> bool {
        match self {
            Self::Kill(Victim::Shim, state) => state.has_exited(),
            Self::Kill(Victim::Containerd, state) => state == State::Deleting,
            _ => false,
        }
    }
}

impl Victim {
    pub(crate) const ALL: [Self; 3] = [Self::Containerd, Self::Shim, Self::Both];

    fn kills_containerd(self) -> bool {
        self != Self::Shim
    }

    fn kills_shim(self) -> bool {
        self != Self::Containerd
    }
}

impl State {
    pub(crate) const ALL: [Self; 7] = [
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Executing,
        Self::Stopped,
        Self::Unreported,
        Self::Deleting,
    ];

    fn has_exited(self) -> bool {
        matches!(self, Self::Stopped | Self::Unreported | Self::Deleting)
    }
}

/// Kills something while a container is in a state, then deletes the container.
#[allow(
    clippy::zombie_processes,
    reason = "the client is waited for in every state"
)]
fn kill(fixture: &mut Fixture, row: &mut Row, victim: Victim, state: State) -> (String, Groups) {
    let runtime = row.runtime;
    let id = fixture.new_id();
    let script = Fixture::gated_script(&id, "");
    let mut start = fixture.run_command(runtime, &id, &["--detach", "--null-io"], &script);
    let mut client = start.stderr(Stdio::null()).spawn().unwrap();
    if state == State::Starting {
        eventually("the shim runs", || fixture.shim_pid(&id).is_some());
    } else {
        assert!(client.wait().unwrap().success(), "{id} does not start");
    }
    let groups = groups_of(fixture, &id);
    let mut deleting = None;
    match state {
        State::Starting | State::Running => {}
        State::Paused => assert_success(&fixture.ctr(&["task", "pause", &id])),
        State::Executing => {
            let exec = [
                "task",
                "exec",
                "--detach",
                "--exec-id",
                "e",
                &id,
                "sleep",
                "1000",
            ];
            assert_success(&fixture.ctr(&exec));
        }
        State::Stopped | State::Deleting => {
            fixture.open_gate(&id);
            wait_stopped(fixture, &id);
            if state == State::Deleting {
                let mut delete = fixture.containerd.ctr_command(["task", "delete", &id]);
                deleting = Some(delete.stderr(Stdio::piped()).spawn().unwrap());
                sleep(Duration::from_millis(30));
            }
        }
        State::Unreported => {
            signal(fixture.containerd.pid(), "STOP");
            fixture.open_gate(&id);
            fixture.wait_recorded(runtime, &id);
        }
    }
    if victim.kills_containerd() {
        fixture.containerd.kill();
    }
    if victim.kills_shim()
        && let Some(pid) = fixture.shim_pid(&id)
    {
        signal(pid, "KILL");
    }
    if victim.kills_containerd() {
        fixture.containerd.restart();
        fixture.log.wait_connected(&fixture.containerd);
    } else if state == State::Unreported {
        signal(fixture.containerd.pid(), "CONT");
    }
    if state == State::Starting {
        // Whether it was started is not known.
        let _ = client.wait();
    } else if !victim.kills_shim() && !state.has_exited() {
        fixture.ctr(&["task", "resume", &id]);
        fixture.open_gate(&id);
    }
    let of_delete = deleting.and_then(|client| {
        let output = client.wait_with_output().unwrap();
        Fixture::exit_code(&output)
    });
    if state != State::Starting {
        let code = if victim.kills_shim() && !state.has_exited() {
            KILLED
        } else {
            CODE
        };
        let is_reported = || !fixture.log.codes(&id).is_empty();
        let is_stopped = || fixture.containerd.task_status(&id).as_deref() == Some("STOPPED");
        wait_for(runtime, || is_reported() || is_stopped());
        let deleted = fixture.delete_task(&id).or(of_delete);
        wait_for(runtime, is_reported);
        // Its directory is removed after the last event has been sent.
        wait_for(runtime, || fixture.has_no_pods());
        fixture.log.wait_connected(&fixture.containerd);
        row.add(&fixture.log.codes(&id), deleted, code);
    }
    (id, groups)
}

/// Ends many processes of a container at once while containerd is stopped.
fn exits_during_stall(fixture: &mut Fixture, row: &mut Row, exits: usize) -> (String, Groups) {
    let runtime = row.runtime;
    let id = fixture.new_id();
    let script = Fixture::gated_script(&id, "busybox killall -TERM sleep; sleep 2;");
    let mut start = fixture.run_command(runtime, &id, &["--detach", "--null-io"], &script);
    assert!(start.status().unwrap().success());
    let groups = groups_of(fixture, &id);
    for number in 0..exits {
        let exec_id = format!("e{number}");
        let exec = ["task", "exec", "--detach", "--exec-id", &exec_id, &id];
        assert_success(&fixture.ctr(&[&exec[..], &["sleep", "1000"]].concat()));
    }
    signal(fixture.containerd.pid(), "STOP");
    fixture.open_gate(&id);
    sleep(STALL);
    signal(fixture.containerd.pid(), "CONT");
    wait_for(runtime, || fixture.log.of(&id).len() > exits);
    let reported = fixture.log.of(&id);
    for number in 0..exits {
        let exec_id = format!("e{number}");
        let of_process = reported.iter().filter(|exit| exit.process == exec_id);
        let codes: Vec<u64> = of_process.map(|exit| exit.code).collect();
        row.add(&codes, None, TERMINATED);
    }
    row.add(&fixture.log.codes(&id), None, CODE);
    (id, groups)
}

/// Creates and removes pods one after another.
fn pods_in_sequence(fixture: &mut Fixture, row: &mut Row, pods: usize) -> (String, Groups) {
    let runtime = row.runtime;
    let (mut id, mut at_first) = (String::new(), None);
    let mut groups = Groups::new();
    for _ in 0..pods {
        id = fixture.new_id();
        let script = Fixture::gated_script(&id, "");
        let mut start = fixture.run_command(runtime, &id, &["--detach", "--null-io"], &script);
        assert!(start.status().unwrap().success(), "{id} does not start");
        groups.extend(groups_of(fixture, &id));
        fixture.open_gate(&id);
        eventually("the exit is reported", || {
            !fixture.log.codes(&id).is_empty()
        });
        wait_stopped(fixture, &id);
        let deleted = fixture.delete_task(&id);
        row.add(&fixture.log.codes(&id), deleted, CODE);
        fixture.remove(&id);
        at_first.get_or_insert_with(|| usage(fixture.containerd.pid()));
    }
    let first = at_first.unwrap_or_default();
    let mut last = first;
    // Connections that have ended are closed a little later.
    wait_for(runtime, || {
        last = usage(fixture.containerd.pid());
        last.0 <= first.0 + MAX_NEW_DESCRIPTORS
    });
    if last.0 > first.0 + MAX_NEW_DESCRIPTORS {
        let leftover = format!("{} descriptors of containerd", last.0 - first.0);
        row.leftovers.push(leftover);
    }
    let grown = last.1.saturating_sub(first.1);
    if grown > MAX_NEW_MIB {
        row.leftovers.push(format!("{grown} MiB of containerd"));
    }
    row.remark = format!(
        "containerd after the first and the last: {} and {} descriptors, {} and {} MiB",
        first.0, last.0, first.1, last.1
    );
    (id, groups)
}

/// Waits until the condition holds, at most for the time that this runtime has.
fn wait_for(runtime: Runtime, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() && start.elapsed() < runtime.timeout() {
        sleep(Duration::from_millis(100));
    }
}

fn wait_stopped(fixture: &Fixture, id: &str) {
    eventually("the container has exited", || {
        fixture.containerd.task_status(id).as_deref() == Some("STOPPED")
    });
}

/// Returns the number of descriptors of a process, and its memory in MiB.
fn usage(pid: u32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    (descriptors, kib.unwrap_or(0) >> 10)
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "signal {name} to {pid}");
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim, state) => write!(f, "{victim} killed, container {state}"),
            Self::Stall { exits } => write!(f, "{exits} exits at once, containerd stalled for 3 s"),
            Self::Sequence { pods } => write!(f, "{pods} pods in sequence"),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Shim => "shim",
            Self::Both => "containerd and shim",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Executing => "with a second process",
            Self::Stopped => "stopped",
            Self::Unreported => "exited, containerd stalled",
            Self::Deleting => "being deleted",
        })
    }
}
