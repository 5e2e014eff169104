use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{Exits, ShimExit, ShimReaper};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::census;
use crate::child::{Fate, Registered};
use crate::population::{Life, Population, Rules};
use crate::random::Random;
use crate::reader::Reader;
use crate::tally::{Loss, Tally};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Home {
    MultiThread,
    CurrentThread,
    Dedicated,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// Shut down right after the last exit was awaited.
    AwaitThenShutDown,
    AwaitThenShutDownSync,
    AwaitThenCancel,
    /// Shut down while shims start, run and end.
    ShutDownAmid,
    CancelAmid,
    /// Every `ShimReaper` is dropped while shims run.
    Abandon,
    /// The tokio runtime is dropped while shims run.
    DropRuntime,
}

impl Ending {
    const ALL: [Self; 7] = [
        Self::AwaitThenShutDown,
        Self::AwaitThenShutDownSync,
        Self::AwaitThenCancel,
        Self::ShutDownAmid,
        Self::CancelAmid,
        Self::Abandon,
        Self::DropRuntime,
    ];

    /// Shims may still run when the reaper shuts down.
    fn is_amid(self) -> bool {
        matches!(self, Self::ShutDownAmid | Self::CancelAmid)
    }

    fn loses_handles(self) -> bool {
        self.is_amid() || matches!(self, Self::Abandon | Self::DropRuntime)
    }
}

/// One reaper from its start to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) number: u64,
    home: Home,
    ending: Ending,
    pidfd: bool,
    subreaper: bool,
    interval: Duration,
    rules: Rules,
}

impl Round {
    pub(crate) fn draw(number: u64, statuses_are_kept: bool, random: &mut Random) -> Self {
        let ending = random.pick(&Ending::ALL);
        let pidfd = !random.one_in(5);
        // A spawn that a shutdown overtakes kills its child, which leaves orphans of its own.
        let subreaper = random.one_in(2) && !ending.is_amid();
        // The final drain of a shutdown leaves no child to its owner.
        let owners_wait = random.one_in(2) && !ending.is_amid();
        Self {
            number,
            home: random.pick(&[Home::MultiThread, Home::CurrentThread, Home::Dedicated]),
            ending,
            pidfd,
            subreaper,
            interval: Duration::from_millis(random.pick(&[2, 20, 250])),
            rules: Rules {
                owners_wait,
                orphans: subreaper && !owners_wait,
                keep_handles: !ending.loses_handles(),
                statuses_are_kept: statuses_are_kept && pidfd,
            },
        }
    }

    pub(crate) fn run(&self, random: &mut Random, tally: &Tally) {
        set_child_subreaper(self.subreaper).unwrap();
        // The main thread adopts the orphans, and so forks nothing itself.
        thread::scope(|scope| {
            scope.spawn(|| self.play(random, tally));
        });
    }

    fn play(&self, random: &mut Random, tally: &Tally) {
        let mut builder = match self.home {
            Home::CurrentThread => Builder::new_current_thread(),
            Home::MultiThread | Home::Dedicated => Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let token = CancellationToken::new();
        let reaper = self.start(&runtime, &token);
        let streams = (Reader::start(reaper.exits()), reaper.exits());
        let population = Arc::new(Population::new(self.rules));
        let tasks = (0..=random.below(40))
            .map(|_| Life {
                population: Arc::clone(&population),
                reaper: reaper.clone(),
                random: random.fork(),
            })
            .map(|life| runtime.spawn(life.live()))
            .collect();
        let pause = random.millis(40);
        let running = self.end(pause, runtime, tasks, reaper, &token, &population);
        self.check(&population, streams, &running, tally);
    }

    fn start(&self, runtime: &Runtime, token: &CancellationToken) -> ShimReaper {
        let grace = if self.rules.owners_wait {
            1_000_000
        } else {
            20
        };
        let builder = ShimReaper::builder()
            .pidfd(self.pidfd)
            .sweep_interval(self.interval)
            .owner_grace(Duration::from_millis(grace))
            .shutdown_token(token.clone());
        match self.home {
            Home::Dedicated => builder.start_dedicated().unwrap(),
            Home::MultiThread | Home::CurrentThread => builder.start_on(runtime.handle()),
        }
    }

    /// Ends the reaper. Returns the pids that its report says still run.
    fn end(
        &self,
        pause: Duration,
        runtime: Runtime,
        tasks: Vec<JoinHandle<()>>,
        reaper: ShimReaper,
        token: &CancellationToken,
        population: &Population,
    ) -> HashSet<u32> {
        let report = match self.ending {
            Ending::AwaitThenShutDown => {
                self.await_all(&runtime, tasks, population);
                runtime.block_on(reaper.shutdown())
            }
            Ending::AwaitThenShutDownSync => {
                self.await_all(&runtime, tasks, population);
                reaper.shutdown_sync()
            }
            Ending::AwaitThenCancel => {
                self.await_all(&runtime, tasks, population);
                token.cancel();
                runtime.block_on(reaper.shutdown())
            }
            Ending::ShutDownAmid => runtime.block_on(sleep_then(pause, reaper.shutdown())),
            Ending::CancelAmid => {
                runtime.block_on(sleep_then(pause, async { token.cancel() }));
                reaper.shutdown_sync()
            }
            Ending::Abandon => {
                drop(reaper);
                self.await_all(&runtime, tasks, population);
                // The last handle ends the streams.
                population
                    .registered()
                    .iter_mut()
                    .for_each(|shim| shim.handle = None);
                runtime.shutdown_background();
                return HashSet::new();
            }
            Ending::DropRuntime => {
                runtime.block_on(sleep_then(pause, async {}));
                drop(runtime);
                // Polled once on a runtime that nothing drives afterwards.
                let other = Builder::new_current_thread().enable_all().build().unwrap();
                for shim in population.registered().iter() {
                    let Some(handle) = &shim.handle else { continue };
                    let _ = other.block_on(async { handle.clone().now_or_never() });
                    if shim.fate == Fate::Killed {
                        let _ = handle.kill();
                    }
                }
                census::holds(|| block_on(reaper.registered()).is_empty());
                // A reaper that has shut down reaps no orphans.
                census::holds(|| !self.rules.orphans || census::children().is_empty());
                reaper.shutdown_sync()
            }
        };
        report.still_running.into_iter().collect()
    }

    fn await_all(&self, runtime: &Runtime, tasks: Vec<JoinHandle<()>>, population: &Population) {
        let patience = Duration::from_secs(10);
        let _ = runtime.block_on(async { timeout(patience, join_all(tasks)).await });
        if self.rules.owners_wait {
            // They come first, and the shutdown would not wait for them.
            census::holds(|| population.owners_have_waited());
        }
        let shims = population.registered();
        let handles: Vec<_> = shims
            .iter()
            .filter_map(|shim| shim.handle.clone())
            .collect();
        drop(shims);
        if self.rules.orphans {
            // On the runtime, which may have no thread of its own to drive the reaper.
            let reaped = async {
                while !census::children().is_empty() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = runtime.block_on(async { timeout(patience, reaped).await });
        }
        let _ = runtime.block_on(async { timeout(patience, join_all(handles)).await });
    }

    fn check(
        &self,
        population: &Population,
        (meanwhile, afterwards): (Reader, Exits),
        running: &HashSet<u32>,
        tally: &Tally,
    ) {
        let registered = std::mem::take(&mut *population.registered());
        tally.lived(registered.len());
        let (stopped, ended): (Vec<_>, Vec<_>) = registered
            .iter()
            .partition(|shim| running.contains(&shim.pid));
        if !self.ending.is_amid() {
            tally.count(
                Loss::Lost,
                stopped.len() as u64,
                self,
                "registered to the end",
            );
        }
        self.check_handles(&ended, tally);
        self.check_stream(&ended, meanwhile, "a stream read meanwhile", tally);
        self.check_stream(
            &ended,
            Reader::start(afterwards),
            "a stream read afterwards",
            tally,
        );
        self.reap(&stopped, tally);
        let owners = population.take_owners().into_iter();
        let robbed = owners.filter_map(|owner| (!owner.got_the_status()).then_some(()));
        tally.count(
            Loss::Stolen,
            robbed.count() as u64,
            self,
            "from their owners",
        );
        census::holds(|| census::children().is_empty());
        tally.count(Loss::Zombie, census::clear(), self, "after the round");
    }

    fn check_handles(&self, ended: &[&Registered], tally: &Tally) {
        for shim in ended {
            let Some(handle) = &shim.handle else { continue };
            census::holds(|| !handle.is_running());
            match handle.try_exit() {
                None => tally.count(Loss::Lost, 1, self, "by a handle"),
                Some(exit) if shim.ended_as(&exit) => {}
                Some(_) => tally.count(Loss::Wrong, 1, self, &format!("by a handle: {shim:?}")),
            }
        }
    }

    fn check_stream(&self, ended: &[&Registered], reader: Reader, which: &str, tally: &Tally) {
        let (read, has_ended) = reader.finish();
        tally.count(Loss::Lost, (!has_ended).into(), self, "end of a stream");
        let mut by_pid: HashMap<u32, Vec<ShimExit>> = HashMap::new();
        for exit in read {
            by_pid.entry(exit.pid).or_default().push(exit);
        }
        for shim in ended {
            match by_pid.remove(&shim.pid).as_deref() {
                None => tally.count(Loss::Lost, 1, self, &format!("by {which}: {shim:?}")),
                Some([exit]) if shim.ended_as(exit) => {}
                Some(exits) => {
                    let what = format!("by {which}: {exits:?} of {shim:?}");
                    tally.count(Loss::Wrong, 1, self, &what);
                }
            }
        }
        tally.count(Loss::Wrong, by_pid.len() as u64, self, "never registered");
    }

    /// What still ran at the shutdown is left to the embedder, status included.
    fn reap(&self, stopped: &[&Registered], tally: &Tally) {
        for shim in stopped.iter().filter(|shim| !shim.attached) {
            let pid = Pid::from_raw(shim.pid as i32);
            if shim.fate == Fate::Killed {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let stolen = waitpid(pid, None) == Err(Errno::ECHILD);
            tally.count(Loss::Stolen, stolen.into(), self, "after the shutdown");
        }
    }
}

async fn sleep_then<F: Future>(pause: Duration, then: F) -> F::Output {
    sleep(pause).await;
    then.await
}
