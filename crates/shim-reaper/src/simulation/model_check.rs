//! Plays histories of the simulation on the simulated and on the running kernel, and compares what both
//! report. An action of the reaper becomes the calls that the reaper makes for it. What a test cannot
//! make the running kernel do is left out, such as lost events.

#![allow(clippy::zombie_processes)]

#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/common/own_process.rs"]
mod own_process;

mod fork;
mod requests;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;

use self::view::{View, kind, result};
use super::Options;
use super::action::{Action, ForkedBy, Name};
use super::history::History;
use crate::Signal;
use crate::kernel::simulated::{Descriptor, Features, ProcessState, Simulated};
use crate::kernel::{Linux, ProcessTable, Target, Until, WaitResult};
use crate::parker::backend::Backend;
use crate::wake_event::WakeEvent;

const DEADLINE: Duration = Duration::from_secs(60);

/// How many histories are played of each kind.
const HISTORIES: u64 = 40;

/// The number of actions of a history that are played.
const MAX_ACTIONS: usize = 60;

/// A process that runs on one kernel and is simulated on the other, with the same pid.
struct Process {
    pid: u32,
    /// Its index in the simulated kernel.
    index: usize,
    /// Receives the exit code.
    commands: UnixStream,
    /// The index of its parent, unless that is the test.
    parent: Option<usize>,
    pidfds: Option<(OwnedFd, Descriptor)>,
    token: u64,
    watched: bool,
    /// Whether a registration makes the reaper reap it.
    owned: bool,
}

struct Kernels<'a> {
    real: &'a Linux,
    /// Where the real kernel reaps children as they exit. The simulated one does so too then.
    ring: Option<Backend<'a>>,
    simulated: Simulated,
    processes: BTreeMap<u32, Process>,
    /// The pids of the processes of a history.
    names: BTreeMap<Name, u32>,
    /// The children of leaders that no action has named yet, by the pid of the leader.
    unnamed: BTreeMap<u32, u32>,
}

#[test]
fn simulated_kernel_agrees_with_the_running_one() {
    let test = "simulation::model_check::simulated_kernel_agrees_with_the_running_one";
    own_process::in_own_process(test, || play_histories(false));
}

/// Plays histories that are always the same, and new ones.
fn play_histories(io_uring: bool) {
    set_child_subreaper(true).unwrap();
    let features = Features {
        io_uring,
        ..running_features()
    };
    let options = Options {
        io_uring,
        ..Options::default()
    };
    let random = fastrand::u64(HISTORIES..1 << 32);
    println!("the first random seed is {random}");
    for seed in (0..HISTORIES).chain(random..random + HISTORIES) {
        let real = Linux::new(true, io_uring);
        let actions = History::random(seed, options).actions();
        Kernels::new(&real, features).play(&actions, seed);
    }
}

/// Returns the interfaces of the running kernel that the histories use.
fn running_features() -> Features {
    let real = Linux::new(true, false);
    let mut kernels = Kernels::new(&real, Features::LATEST);
    let pid = kernels.fork();
    let Ok(pidfd) = real.open(pid) else {
        return Features {
            pidfds: false,
            ..Features::LATEST
        };
    };
    real.watch(&pidfd, 1).unwrap();
    real.watch_again(&pidfd, 1, Until::Reaped).unwrap();
    kernels.exit(pid, 0);
    let by_pidfd = || Target::Pidfd(pid, &pidfd);
    assert!(matches!(real.reap(by_pidfd()), WaitResult::Exited(_)));
    Features {
        hangup: real.ready(&mut VecDeque::new()).unwrap() > 0,
        exit_info: real.exit_status(&pidfd).is_some(),
        ..Features::LATEST
    }
}

impl<'a> Kernels<'a> {
    fn new(real: &'a Linux, features: Features) -> Self {
        let simulated = Simulated::new(features);
        simulated.open_requests();
        let wake_event = Arc::new(WakeEvent::new().unwrap());
        Self {
            real,
            ring: (features.io_uring).then(|| Backend::new(real, &wake_event)),
            simulated,
            processes: BTreeMap::new(),
            names: BTreeMap::new(),
            unnamed: BTreeMap::new(),
        }
    }

    fn play(&mut self, actions: &[Action], seed: u64) {
        let mut history = Vec::new();
        for action in actions {
            if history.len() == MAX_ACTIONS {
                break;
            }
            if !self.perform(*action) {
                continue;
            }
            history.push(action);
            let (real, simulated) = self.look();
            assert_eq!(real, simulated, "seed {seed}: {history:#?}");
            self.forget_reaped();
        }
        self.end();
    }

    /// Performs an action on both kernels. Returns whether it did something.
    fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::Fork { name, parent, .. } => {
                let pid = match parent {
                    ForkedBy::Owner | ForkedBy::OwnerThread => Some(self.fork()),
                    ForkedBy::Shim(leader) => {
                        self.pid(leader).and_then(|pid| self.unnamed.remove(&pid))
                    }
                    // Such a process is not a child of the test.
                    ForkedBy::Init => None,
                };
                self.names.extend(pid.map(|pid| (name, pid)));
                pid.is_some()
            }
            Action::Spawn {
                name, leads_group, ..
            } => {
                let pid = if leads_group {
                    let (pid, child) = self.fork_parent();
                    self.unnamed.insert(pid, child);
                    pid
                } else {
                    self.fork()
                };
                self.names.insert(name, pid);
                self.register(pid, true);
                if !leads_group {
                    self.reap_on_exit(pid);
                }
                true
            }
            Action::Register { name } | Action::RegisterPidfd { name } => {
                self.with(name, |kernels, pid| kernels.register(pid, false))
            }
            Action::Adopt { name, .. } => {
                self.with(name, |kernels, pid| kernels.register(pid, true))
            }
            Action::Attach { name } => self.with(name, Self::open),
            Action::Exit { name, code } if code < 0 => self.with(name, |kernels, pid| {
                kernels.kill(pid, Signal::SIGTERM, false)
            }),
            Action::Exit { name, code } => self.with(name, |kernels, pid| kernels.exit(pid, code)),
            Action::Signal { name, signal } => {
                self.with(name, |kernels, pid| kernels.kill(pid, signal, true))
            }
            Action::Wait { name } | Action::EndWait { name } => {
                self.with(name, |kernels, pid| kernels.wait(pid, true, false))
            }
            Action::Await { name, .. } => self.with(name, |kernels, pid| {
                kernels.wait(pid, false, true);
                // The reaper leaves a zombie to its owner until it is reaped.
                let until_reaped = !kernels.is_running(pid);
                kernels.watch(pid, until_reaped);
            }),
            Action::PollWorker => {
                self.reap_in_kernel();
                let owned = self.processes.values().filter(|one| one.owned);
                let pids: Vec<u32> = owned.map(|one| one.pid).collect();
                for pid in &pids {
                    self.wait(*pid, true, true);
                }
                !pids.is_empty()
            }
            _ => false,
        }
    }

    fn pid(&self, name: Name) -> Option<u32> {
        let pid = self.names.get(&name).copied();
        pid.filter(|pid| self.processes.contains_key(pid))
    }

    /// Runs `perform` for the process of a name, unless it is reaped.
    fn with(&mut self, name: Name, perform: impl FnOnce(&mut Self, u32)) -> bool {
        let pid = self.pid(name);
        if let Some(pid) = pid {
            perform(self, pid);
        }
        pid.is_some()
    }

    fn register(&mut self, pid: u32, owned: bool) {
        self.open(pid);
        self.watch(pid, false);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.owned |= owned;
        }
    }

    fn is_running(&self, pid: u32) -> bool {
        let process = &self.processes[&pid];
        self.simulated.process(process.index).state.is_running()
    }

    /// Returns whether its exit leaves a zombie: a shell may reap its children at any time.
    fn can_end(&self, pid: u32) -> bool {
        let is_running = |index| self.simulated.process(index).state.is_running();
        let parent = self.processes[&pid].parent;
        self.is_running(pid) && !parent.is_some_and(is_running)
    }

    fn exit(&mut self, pid: u32, code: i32) {
        if self.can_end(pid) {
            let mut commands = &self.processes[&pid].commands;
            writeln!(commands, "{code}").unwrap();
            self.await_exit(pid);
            self.simulated.set(pid, ProcessState::Zombie(code));
        }
    }

    fn kill(&self, pid: u32, signal: Signal, by_pidfd: bool) {
        if !self.can_end(pid) {
            return;
        }
        let pidfds = self.processes[&pid].pidfds.as_ref();
        let results = match pidfds.filter(|_| by_pidfd) {
            Some((real, simulated)) => (
                self.real.signal(real, signal).is_ok(),
                self.simulated.signal(simulated, signal).is_ok(),
            ),
            None => (
                self.real.signal_pid(pid, signal).is_ok(),
                self.simulated.signal_pid(pid, signal).is_ok(),
            ),
        };
        assert_eq!(results, (true, true));
        self.await_exit(pid);
    }

    fn await_exit(&self, pid: u32) {
        let deadline = Instant::now() + DEADLINE;
        while self
            .real
            .stat(pid)
            .unwrap()
            .is_some_and(|stat| !stat.exited)
        {
            assert!(Instant::now() < deadline, "process {pid} does not exit");
            sleep(Duration::from_micros(200));
        }
        // A wait that finds the zombie comes after the kernel has notified all that wait for the exit.
        self.real.peek(Target::Pid(pid));
    }

    fn open(&mut self, pid: u32) {
        let real = self.real.open(pid);
        let simulated = self.simulated.open(pid);
        let process = self.processes.get_mut(&pid).unwrap();
        match (real, simulated) {
            (Ok(real), Ok(simulated)) => {
                if process.pidfds.is_none() {
                    process.pidfds = Some((real, simulated));
                }
            }
            (Err(real), Err(simulated)) => assert_eq!(kind(&real), kind(&simulated)),
            (real, simulated) => panic!("open {pid}: {real:?} and {simulated:?}"),
        }
    }

    fn watch(&mut self, pid: u32, until_reaped: bool) {
        let process = self.processes.get_mut(&pid).unwrap();
        let Some((real, simulated)) = &process.pidfds else {
            return;
        };
        let token = process.token;
        if process.watched {
            let until = || {
                if until_reaped {
                    Until::Reaped
                } else {
                    Until::Exited
                }
            };
            self.real.watch_again(real, token, until()).unwrap();
            self.simulated
                .watch_again(simulated, token, until())
                .unwrap();
        } else {
            self.real.watch(real, token).unwrap();
            self.simulated.watch(simulated, token).unwrap();
            process.watched = true;
        }
    }

    fn wait(&self, pid: u32, reap: bool, by_pidfd: bool) {
        let process = &self.processes[&pid];
        let pidfds = process.pidfds.as_ref().filter(|_| by_pidfd);
        let real = match pidfds {
            Some((pidfd, _)) => Target::Pidfd(pid, pidfd),
            None => Target::Pid(pid),
        };
        let simulated = match pidfds {
            Some((_, pidfd)) => Target::Pidfd(pid, pidfd),
            None => Target::Pid(pid),
        };
        let results = if reap {
            (self.real.reap(real), self.simulated.reap(simulated))
        } else {
            (self.real.peek(real), self.simulated.peek(simulated))
        };
        assert_eq!(result(&results.0), result(&results.1), "wait {pid}");
    }

    /// Returns what both kernels report about all processes.
    fn look(&self) -> (Vec<View>, Vec<View>) {
        let views = self.processes.values().map(|process| {
            let (real, simulated) = match &process.pidfds {
                Some((real, simulated)) => (Some(real), Some(simulated)),
                None => (None, None),
            };
            (
                View::new(self.real, process.pid, real),
                View::new(&self.simulated, process.pid, simulated),
            )
        });
        let (mut real, mut simulated): (Vec<_>, Vec<_>) = views.unzip();
        real.push(View::of_events(self.real));
        simulated.push(View::of_events(&self.simulated));
        (real, simulated)
    }

    /// Leaves no process behind.
    fn end(&mut self) {
        // Parents first, so that their children become those of this process.
        let (children, parents): (Vec<u32>, Vec<u32>) = self
            .processes
            .keys()
            .partition(|pid| self.processes[*pid].parent.is_some());
        for pid in parents.into_iter().chain(children) {
            self.kill(pid, Signal::SIGKILL, false);
            self.wait(pid, true, false);
            assert!(self.real.stat(pid).unwrap().is_none());
        }
        self.end_requests();
    }
}
