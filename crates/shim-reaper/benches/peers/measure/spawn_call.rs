//! The time that a spawn blocks its caller.

use std::fs::{self, File, OpenOptions};
use std::hint;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use shim_reaper::Command;

use crate::peer::{Ours, TokioAwaited};
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
    /// Nothing, but the reaper gets a command of std, which forks to report the pidfd of the child.
    PlainOfStd,
}

/// A way to spawn a child; the first two register it, the last waits for it.
#[derive(Clone, Copy)]
enum Spawner {
    Reaper,
    Tokio,
    Bare,
}

const SPAWNERS: [Spawner; 3] = [Spawner::Reaper, Spawner::Tokio, Spawner::Bare];

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let bench = Bench {
        ours: Ours::new(),
        tokio: TokioAwaited::new(),
        ignore_sigchld: false,
    };
    let once = Some(Limit::Cheaper(1.4));
    bench.compare(
        report,
        "Spawn call",
        &Child::Plain,
        effort.times(PAIRS),
        once,
    );
    let label = "Spawn call, command of std";
    let pairs = effort.times(PAIRS);
    bench.compare(report, label, &Child::PlainOfStd, pairs, None);
    let large = "Spawn call, parent of 2 GB";
    let ballast = ballast();
    bench.compare(report, large, &Child::Plain, effort.times(PAIRS), once);
    let pairs = effort.times(PAIRS_WITH_FORK);
    let many = Some(Limit::Cheaper(50.0));
    if system::is_root() {
        let label = format!("{large}, `uid`");
        bench.compare(report, &label, &Child::OtherUser, pairs, many);
    }
    match ControlGroup::create() {
        Ok(group) => {
            let label = format!("{large}, control group");
            bench.compare(report, &label, &Child::ControlGroup(group), pairs, many);
        }
        Err(error) => eprintln!("no control group: {error}"),
    }
    hint::black_box(ballast);
}

/// Measures with SIGCHLD ignored, which changes how every peer reaps.
pub(super) fn run_ignored(effort: &Effort, report: &mut Report) {
    let bench = Bench {
        ours: Ours::new(),
        tokio: TokioAwaited::new(),
        ignore_sigchld: true,
    };
    let label = "Spawn call, SIGCHLD ignored";
    let once = Some(Limit::Cheaper(1.4));
    bench.compare(report, label, &Child::Plain, effort.times(PAIRS), once);
}

struct Bench {
    ours: Ours,
    tokio: TokioAwaited,
    ignore_sigchld: bool,
}

impl Bench {
    fn compare(
        &self,
        report: &mut Report,
        label: &str,
        child: &Child,
        pairs: usize,
        limit: Option<Limit>,
    ) {
        let mut samples: [Samples; SPAWNERS.len()] = Default::default();
        for (_, index) in turns(SPAWNERS.len(), pairs) {
            // After a fork of another one the memory of the parent is write-protected.
            self.spawn(SPAWNERS[index], child);
            let time = self.spawn(SPAWNERS[index], child);
            samples[index].push_block(time.as_secs_f64());
        }
        let row = report.row(label, Unit::Time);
        for (column, samples) in [Column::Ours, Column::TokioAwaited, Column::Floor]
            .into_iter()
            .zip(&samples)
        {
            row.set(column, samples.median());
        }
        let [ours, tokio, _] = &samples;
        if let Some(limit) = limit {
            row.goal("tokio awaited", tokio.ratio_to(ours, MEDIAN), limit);
        }
    }

    /// Returns how long the spawn takes. Then waits until the child is reaped.
    fn spawn(&self, spawner: Spawner, child: &Child) -> Duration {
        if self.ignore_sigchld {
            // Each time: tokio installs a handler when it finds that a child is gone.
            system::ignore_sigchld();
        }
        let entered = self.tokio.runtime.enter();
        let start = Instant::now();
        let spawned;
        match spawner {
            Spawner::Reaper => {
                let reaper = &self.ours.reaper;
                let handle = match child {
                    Child::PlainOfStd => reaper.spawn(process::Command::new(PROGRAM)),
                    _ => reaper.spawn(child.ours()),
                };
                let handle = handle.unwrap();
                spawned = start.elapsed();
                drop(entered);
                handle.wait_blocking().unwrap();
            }
            Spawner::Bare => {
                let mut spawned_child = child.ours().spawn().unwrap();
                spawned = start.elapsed();
                // Fails if SIGCHLD is ignored, after the child has ended.
                let _ = spawned_child.wait();
            }
            Spawner::Tokio => {
                let mut spawned_child = child.tokio().spawn().unwrap();
                spawned = start.elapsed();
                drop(entered);
                // As above.
                let _ = self.tokio.runtime.block_on(spawned_child.wait());
            }
        }
        spawned
    }
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
            Self::Plain | Self::PlainOfStd => {}
            Self::OtherUser => _ = command.uid(1),
            Self::ControlGroup(group) => _ = command.cgroup(File::open(&group.path).unwrap()),
        }
        command
    }

    fn tokio(&self) -> tokio::process::Command {
        let mut command = process::Command::new(PROGRAM);
        match self {
            Self::Plain | Self::PlainOfStd => {}
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
