use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on_stream;
use futures::future::join_all;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{Exits, MetricsSink, ShimExit, ShimReaper};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::census;
use crate::child::{Fate, Registered};
use crate::population::{Lifecycle, Population, Rules, SpawnRequest};
use crate::random::Random;
use crate::tally::{Loss, Tally};

/// The tokio runtime or thread that drives the reaper.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Driver {
    MultiThread,
    CurrentThread,
    Dedicated,
}

/// How the round ends its reaper.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// Shut down right after awaiting the last exit.
    AwaitThenShutDown,
    AwaitThenShutDownSync,
    AwaitThenCancel,
    /// Shut down while shims start, run and end.
    ShutDownWhileBusy,
    CancelWhileBusy,
    /// Drop every `ShimReaper` while shims run.
    DropReaper,
    /// Drop the tokio runtime while shims run.
    DropRuntime,
}

impl Ending {
    const ALL: [Self; 7] = [
        Self::AwaitThenShutDown,
        Self::AwaitThenShutDownSync,
        Self::AwaitThenCancel,
        Self::ShutDownWhileBusy,
        Self::CancelWhileBusy,
        Self::DropReaper,
        Self::DropRuntime,
    ];

    /// Returns whether shims may still run when the reaper shuts down.
    fn is_while_busy(self) -> bool {
        matches!(self, Self::ShutDownWhileBusy | Self::CancelWhileBusy)
    }

    fn loses_handles(self) -> bool {
        self.is_while_busy() || matches!(self, Self::DropReaper | Self::DropRuntime)
    }
}

/// One reaper, from its start to its end, and its configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) number: u64,
    driver: Driver,
    ending: Ending,
    pidfd: bool,
    subreaper: bool,
    interval: Duration,
    rules: Rules,
}

impl Round {
    pub(crate) fn random(number: u64, keeps_statuses: bool, random: &mut Random) -> Self {
        let ending = random.pick(&Ending::ALL);
        let pidfd = !random.one_in(5);
        // A spawn during a shutdown kills its child, which may leave orphans.
        let subreaper = random.one_in(2) && !ending.is_while_busy();
        // The final drain of a shutdown reaps children in their grace period.
        let owners_wait = random.one_in(2) && !ending.is_while_busy();
        Self {
            number,
            driver: random.pick(&[
                Driver::MultiThread,
                Driver::CurrentThread,
                Driver::Dedicated,
            ]),
            ending,
            pidfd,
            subreaper,
            interval: Duration::from_millis(random.pick(&[2, 20, 250])),
            rules: Rules {
                owners_wait,
                orphans: subreaper && !owners_wait,
                keep_handles: !ending.loses_handles(),
                tracers: pidfd && !ending.is_while_busy(),
                keeps_statuses: keeps_statuses && pidfd,
            },
        }
    }

    pub(crate) fn run(&self, random: &mut Random, tally: &Tally) {
        set_child_subreaper(self.subreaper).unwrap();
        // The kernel reparents orphans to the main thread, so it forks only the children that have to
        // look like orphans.
        let (main_thread, requests) = mpsc::channel::<SpawnRequest>();
        thread::scope(|scope| {
            scope.spawn(|| self.run_reaper(random, tally, main_thread));
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
    }

    fn run_reaper(
        &self,
        random: &mut Random,
        tally: &Tally,
        main_thread: mpsc::Sender<SpawnRequest>,
    ) {
        let mut builder = match self.driver {
            Driver::CurrentThread => Builder::new_current_thread(),
            Driver::MultiThread | Driver::Dedicated => Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let token = CancellationToken::new();
        let sink = MetricsSink::default();
        let reaper = self.start(&runtime, &token, sink.clone());
        let streams = (Reader::start(reaper.exits()), reaper.exits());
        let population = Arc::new(Population::new(self.rules, main_thread));
        let tasks = (0..=random.below(120))
            .map(|_| Lifecycle {
                population: Arc::clone(&population),
                reaper: reaper.clone(),
                random: random.fork(),
            })
            .map(|lifecycle| runtime.spawn(lifecycle.run()))
            .collect();
        let pause = random.millis(40);
        let running = self.end(pause, runtime, tasks, reaper, &token, &population);
        self.check(&population, streams, &running, &sink, tally);
    }

    fn start(&self, runtime: &Runtime, token: &CancellationToken, sink: MetricsSink) -> ShimReaper {
        let grace_millis = if self.rules.owners_wait {
            1_000_000
        } else {
            // Longer than an owner needs on a loaded machine.
            500
        };
        let builder = ShimReaper::builder()
            .pidfd(self.pidfd)
            .sweep_interval(self.interval)
            .owner_grace(Duration::from_millis(grace_millis))
            .metrics_sink(sink)
            .shutdown_token(token.clone());
        match self.driver {
            Driver::Dedicated => builder.start_dedicated().unwrap(),
            Driver::MultiThread | Driver::CurrentThread => builder.start_on(runtime.handle()),
        }
    }

    /// Ends the reaper. Returns the pids that its report lists as still running.
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
            Ending::ShutDownWhileBusy => runtime.block_on(sleep_then(pause, reaper.shutdown())),
            Ending::CancelWhileBusy => {
                runtime.block_on(sleep_then(pause, async { token.cancel() }));
                reaper.shutdown_sync()
            }
            Ending::DropReaper => {
                drop(reaper);
                self.await_all(&runtime, tasks, population);
                // Dropping the last handle ends the streams.
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
                // Polled once on a tokio runtime that never runs again.
                let other = Builder::new_current_thread().enable_all().build().unwrap();
                for shim in population.registered().iter() {
                    let Some(handle) = &shim.handle else { continue };
                    let _ = other.block_on(async { handle.clone().now_or_never() });
                    if shim.fate == Fate::Killed {
                        let _ = handle.start_kill();
                    }
                }
                census::wait_until(|| reaper.registered().is_empty());
                // A reaper that has shut down reaps no orphans.
                census::wait_until(|| !self.rules.orphans || census::children().is_empty());
                reaper.shutdown_sync()
            }
        };
        report.still_running.into_iter().collect()
    }

    fn await_all(&self, runtime: &Runtime, tasks: Vec<JoinHandle<()>>, population: &Population) {
        let _ = runtime.block_on(async { timeout(census::TIMEOUT, join_all(tasks)).await });
        if self.rules.owners_wait {
            // A shutdown does not wait for owners.
            census::wait_until(|| population.owners_have_waited());
        }
        let shims = population.registered();
        let handles: Vec<_> = shims
            .iter()
            .filter_map(|shim| shim.handle.clone())
            .collect();
        drop(shims);
        if self.rules.orphans {
            // On the tokio runtime, which may need this thread to drive the reaper.
            let reaped = async {
                while !census::children().is_empty() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = runtime.block_on(async { timeout(census::TIMEOUT, reaped).await });
        }
        let _ = runtime.block_on(async { timeout(census::TIMEOUT, join_all(handles)).await });
    }

    fn check(
        &self,
        population: &Population,
        (concurrent, unread): (Reader, Exits),
        running: &HashSet<u32>,
        sink: &MetricsSink,
        tally: &Tally,
    ) {
        let registered = std::mem::take(&mut *population.registered());
        tally.add_lifecycles(registered.len());
        let (stopped, ended): (Vec<_>, Vec<_>) = registered
            .iter()
            .partition(|shim| running.contains(&shim.pid));
        if !self.ending.is_while_busy() {
            tally.count(
                Loss::Lost,
                stopped.len() as u64,
                self,
                "still registered at the end",
            );
        }
        self.check_handles(&ended, tally);
        let unresolved = population.unresolved();
        tally.count(Loss::Lost, unresolved, self, "by a handle of a traced shim");
        let reaped = self.check_stream(&ended, concurrent, "a stream read during the round", tally);
        if !self.rules.owners_wait {
            // Only the registry may reap a registered child, even one that looks like an orphan.
            let stolen = reaped.saturating_sub(sink.reaped_total.load(Relaxed));
            tally.count(Loss::Stolen, stolen, self, "from the registry");
        }
        self.check_stream(
            &ended,
            Reader::start(unread),
            "a stream read after the round",
            tally,
        );
        self.reap_stopped(&stopped, tally);
        let owners = population.take_owners().into_iter();
        let stolen = owners.filter_map(|owner| (!owner.got_true_status()).then_some(()));
        tally.count(
            Loss::Stolen,
            stolen.count() as u64,
            self,
            "from their owners",
        );
        census::wait_until(|| census::children().is_empty());
        tally.count(
            Loss::Zombie,
            census::kill_remaining(),
            self,
            "after the round",
        );
    }

    fn check_handles(&self, ended: &[&Registered], tally: &Tally) {
        for shim in ended {
            let Some(handle) = &shim.handle else { continue };
            census::wait_until(|| !handle.is_running());
            match handle.try_wait() {
                Ok(None) | Err(_) => tally.count(Loss::Lost, 1, self, "by a handle"),
                Ok(Some(exit)) if shim.matches(&exit) => {}
                Ok(Some(_)) => tally.count(Loss::Wrong, 1, self, &format!("by a handle: {shim:?}")),
            }
        }
    }

    /// Returns the number of exits with resource usage: no other wait has reaped those children.
    fn check_stream(
        &self,
        ended: &[&Registered],
        reader: Reader,
        which: &str,
        tally: &Tally,
    ) -> u64 {
        let (read, has_ended) = reader.finish();
        let with_usage = read.iter().filter(|exit| exit.rusage.is_some()).count();
        tally.count(Loss::Lost, (!has_ended).into(), self, "end of a stream");
        let mut by_pid: HashMap<u32, Vec<ShimExit>> = HashMap::new();
        for exit in read {
            by_pid.entry(exit.pid).or_default().push(exit);
        }
        for shim in ended {
            match by_pid.remove(&shim.pid).as_deref() {
                None => tally.count(Loss::Lost, 1, self, &format!("by {which}: {shim:?}")),
                Some([exit]) if shim.matches(exit) => {}
                Some(exits) => {
                    let what = format!("by {which}: {exits:?} of {shim:?}");
                    tally.count(Loss::Wrong, 1, self, &what);
                }
            }
        }
        tally.count(Loss::Wrong, by_pid.len() as u64, self, "never registered");
        with_usage as u64
    }

    /// Waits for the children that were still running at the shutdown. Their statuses must be left to
    /// the embedder.
    fn reap_stopped(&self, stopped: &[&Registered], tally: &Tally) {
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

async fn sleep_then<F: Future>(pause: Duration, future: F) -> F::Output {
    sleep(pause).await;
    future.await
}

/// A thread that reads a stream of exits to its end.
pub(crate) struct Reader {
    read: Arc<Mutex<Vec<ShimExit>>>,
    ended: mpsc::Receiver<()>,
}

impl Reader {
    pub(crate) fn start(exits: Exits) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let into = Arc::clone(&read);
        thread::spawn(move || {
            block_on_stream(exits).for_each(|exit| into.lock().unwrap().push(exit));
            let _ = end.send(());
        });
        Self { read, ended }
    }

    /// Returns the exits that were read, and whether the stream has ended.
    pub(crate) fn finish(self) -> (Vec<ShimExit>, bool) {
        let ended = self.ended.recv_timeout(census::TIMEOUT).is_ok();
        (std::mem::take(&mut self.read.lock().unwrap()), ended)
    }
}
