//! The time that a spawn blocks its caller.

use std::fs::{self, File, OpenOptions};
use std::hint;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use shim_reaper::{Command, ShimReaper};

use crate::peer::{Ours, TokioAwaited};
use crate::processors::wait_for_cpu;
use crate::report::{Column, Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples, turns};
use crate::system;

const PROGRAM: &str = "/bin/true";

const PAIRS: usize = 500;

/// Fewer, because a fork of a large parent takes a tenth of a second.
const PAIRS_WITH_FORK: usize = 25;

const LARGE: usize = 2 << 30;
const PAGE: usize = 4096;

/// What the child has that its parent does not have.
enum Child {
    Plain,
    /// std and tokio fork for it.
    OtherUser,
    /// With tokio the child enters it in a closure, for which std forks.
    ControlGroup(ControlGroup),
}

/// A way to spawn a child. The reaper and tokio register it, `Bare` waits for it.
#[derive(Clone, Copy)]
enum Spawner {
    Reaper,
    /// The reaper, with a command of std.
    ReaperOfStd,
    Tokio,
    Bare,
}

impl Spawner {
    fn column(self) -> Column {
        match self {
            Self::Reaper => Column::Ours,
            Self::ReaperOfStd => Column::OursOfStd,
            Self::Tokio => Column::TokioAwaited,
            Self::Bare => Column::Floor,
        }
    }
}

const NATIVE: &[Spawner] = &[Spawner::Reaper, Spawner::Tokio, Spawner::Bare];

const ALL: &[Spawner] = &[
    Spawner::Reaper,
    Spawner::Tokio,
    Spawner::Bare,
    Spawner::ReaperOfStd,
];

/// Where tokio does not fork.
const BELOW_TOKIO: Goal = (Spawner::Tokio, "tokio awaited", 1.4);

/// Where tokio forks.
const FAR_BELOW_TOKIO: Goal = (Spawner::Tokio, "tokio awaited", 50.0);

/// Where std forks for the reaper.
const FAR_BELOW_STD: Goal = (Spawner::ReaperOfStd, "a command of std", 50.0);

/// A slower spawner, its name, and how many times as long its call has to take as that of the reaper.
type Goal = (Spawner, &'static str, f64);

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let bench = Bench::new();
    let (pairs, fork_pairs) = (effort.times(PAIRS), effort.times(PAIRS_WITH_FORK));
    let plain = &Child::Plain;
    let label = "Spawn call";
    bench.compare(report, label, plain, pairs, ALL, &[BELOW_TOKIO]);

    let ballast = ballast();
    let large = "Spawn call, parent of 2 GB";
    bench.compare(report, large, plain, pairs, NATIVE, &[BELOW_TOKIO]);
    let goals = &[FAR_BELOW_TOKIO];
    if system::is_root() {
        let (label, child) = (format!("{large}, `uid`"), Child::OtherUser);
        bench.compare(report, &label, &child, fork_pairs, NATIVE, goals);
    }
    match ControlGroup::create() {
        Ok(group) => {
            let (label, child) = (
                format!("{large}, control group"),
                Child::ControlGroup(group),
            );
            bench.compare(report, &label, &child, fork_pairs, NATIVE, goals);
        }
        Err(error) => eprintln!("no control group: {error}"),
    }

    let bench = Bench::without_early_pidfd();
    for reaper in [&bench.ours.reaper, &bench.of_std] {
        note_foreign_wait(reaper);
    }
    let label = format!("{large}, after a foreign wait");
    let goals = &[FAR_BELOW_STD, BELOW_TOKIO];
    bench.compare(report, &label, plain, fork_pairs, ALL, goals);
    hint::black_box(ballast);
}

/// Measures with SIGCHLD ignored, which changes how every peer reaps.
pub(super) fn run_ignored(effort: &Effort, report: &mut Report) {
    let mut bench = Bench::without_early_pidfd();
    bench.ignore_sigchld = true;
    let plain = &Child::Plain;
    let (label, pairs) = ("Spawn call, SIGCHLD ignored", effort.times(PAIRS));
    bench.compare(report, label, plain, pairs, NATIVE, &[BELOW_TOKIO]);

    let ballast = ballast();
    let label = "Spawn call, parent of 2 GB, SIGCHLD ignored";
    let pairs = effort.times(PAIRS_WITH_FORK);
    let goals = &[FAR_BELOW_STD, BELOW_TOKIO];
    bench.compare(report, label, plain, pairs, ALL, goals);
    hint::black_box(ballast);
}

struct Bench {
    ours: Ours,
    /// Spawns the commands of std.
    of_std: ShimReaper,
    tokio: TokioAwaited,
    ignore_sigchld: bool,
}

impl Bench {
    fn new() -> Self {
        let ours = Ours::new();
        Self {
            of_std: ours.reaper.clone(),
            ours,
            tokio: TokioAwaited::new(),
            ignore_sigchld: false,
        }
    }

    /// Lets std fork only if SIGCHLD is ignored, or after a foreign wait.
    fn without_early_pidfd() -> Self {
        let bench = Self::new();
        let builder = ShimReaper::builder().early_pidfd(false);
        let of_std = bench.ours.runtime.block_on(async { builder.start() });
        Self { of_std, ..bench }
    }

    fn compare(
        &self,
        report: &mut Report,
        label: &str,
        child: &Child,
        pairs: usize,
        spawners: &[Spawner],
        goals: &[Goal],
    ) {
        let mut samples = vec![Samples::default(); spawners.len()];
        for (_, index) in turns(spawners.len(), pairs) {
            // After a fork of another one the memory of the parent is write-protected.
            self.spawn(spawners[index], child);
            let time = self.spawn(spawners[index], child);
            samples[index].push_block(time.as_secs_f64());
        }
        let row = report.row(label, Unit::Time);
        for (spawner, samples) in spawners.iter().zip(&samples) {
            row.set(spawner.column(), samples.median());
        }
        let of = |wanted: Spawner| {
            let column = wanted.column();
            let index = spawners.iter().position(|one| one.column() == column);
            &samples[index.unwrap()]
        };
        for &(slower, name, times) in goals {
            let ratio = of(slower).ratio_to(of(Spawner::Reaper), MEDIAN);
            row.goal(name, ratio, Limit::Cheaper(times));
        }
    }

    /// Returns how long the spawn takes, without the time in which the caller could run and waited
    /// for a CPU: a child that has the CPU of the caller may keep it until it exits. Then waits until
    /// the child is reaped.
    fn spawn(&self, spawner: Spawner, child: &Child) -> Duration {
        if self.ignore_sigchld {
            // Each time: tokio installs a handler when it finds that a child is gone.
            system::ignore_sigchld();
        }
        let entered = self.tokio.runtime.enter();
        let call = Call::begin();
        let time;
        match spawner {
            Spawner::Reaper | Spawner::ReaperOfStd => {
                let handle = match spawner {
                    Spawner::ReaperOfStd => self.of_std.spawn(process::Command::new(PROGRAM)),
                    _ => self.ours.reaper.spawn(child.ours()),
                };
                let handle = handle.unwrap();
                time = call.end();
                drop(entered);
                handle.wait_blocking().unwrap();
            }
            Spawner::Bare => {
                let mut spawned_child = child.ours().spawn().unwrap();
                time = call.end();
                // Fails if SIGCHLD is ignored, after the child has ended.
                let _ = spawned_child.wait();
            }
            Spawner::Tokio => {
                let mut spawned_child = child.tokio().spawn().unwrap();
                time = call.end();
                drop(entered);
                // As above.
                let _ = self.tokio.runtime.block_on(spawned_child.wait());
            }
        }
        time
    }
}

/// A call that is measured.
struct Call {
    wait: Duration,
    start: Instant,
}

impl Call {
    fn begin() -> Self {
        Self {
            wait: wait_for_cpu(),
            start: Instant::now(),
        }
    }

    fn end(self) -> Duration {
        let time = self.start.elapsed();
        time.saturating_sub(wait_for_cpu() - self.wait)
    }
}

/// Lets the reaper find that another wait has reaped one of its children.
fn note_foreign_wait(reaper: &ShimReaper) {
    let child = process::Command::new(PROGRAM).spawn().unwrap();
    system::wait(child.id());
    let handle = reaper.register_child(child).unwrap();
    handle.wait_blocking().unwrap();
    assert!(reaper.stats().foreign_waits_total > 0);
}

/// Memory whose page tables a fork copies.
fn ballast() -> Vec<u8> {
    let mut memory = vec![0; LARGE];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    memory
}

impl Child {
    fn ours(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        match self {
            Self::Plain => {}
            Self::OtherUser => _ = command.uid(1),
            Self::ControlGroup(group) => _ = command.cgroup(File::open(&group.path).unwrap()),
        }
        command
    }

    fn tokio(&self) -> tokio::process::Command {
        let mut command = process::Command::new(PROGRAM);
        match self {
            Self::Plain => {}
            Self::OtherUser => _ = command.uid(1),
            Self::ControlGroup(group) => {
                let processes = group.path.join("cgroup.procs");
                let processes = OpenOptions::new().write(true).open(processes).unwrap();
                system::enter_control_group(&mut command, processes);
            }
        }
        command.into()
    }
}

/// A new control group, which is removed on drop.
struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    fn create() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount = mount.and_then(|line| line.split(' ').nth(4));
        let mount = mount.ok_or_else(|| io::Error::other("version 2 is not mounted"))?;
        let path = PathBuf::from(mount).join(format!("peers-{}", process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A child that the kernel reaps may still be in it.
        while fs::remove_dir(&self.path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
