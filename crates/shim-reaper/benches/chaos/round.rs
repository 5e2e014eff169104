use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use nix::sys::prctl::set_child_subreaper;
use shim_reaper::{MetricsSink, ShimReaper};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::census;
use crate::check::Reader;
use crate::child::Fate;
use crate::population::{Lifecycle, Population, Rules, SpawnRequest};
use crate::random::Random;
use crate::tally::{Event, Tally};
use crate::trouble::{Trouble, TroubleMaker};

/// The tokio runtime or thread that drives the reaper.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Driver {
    MultiThread,
    CurrentThread,
    Dedicated,
}

/// How the round ends its reaper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    /// Shut down right after awaiting the last exit.
    AwaitThenShutDown,
    AwaitThenShutDownSync,
    AwaitThenCancel,
    /// Shut down while shims start, run and end.
    ShutDownWhileBusy,
    CancelWhileBusy,
    /// Stop every shim, and shut down, while shims start, run and end.
    StopWhileBusy,
    StopOnRequest,
    /// Drop every `ShimReaper` while shims run.
    DropReaper,
    /// Drop the tokio runtime while shims run.
    DropRuntime,
}

impl Ending {
    const ALL: [Self; 9] = [
        Self::AwaitThenShutDown,
        Self::AwaitThenShutDownSync,
        Self::AwaitThenCancel,
        Self::ShutDownWhileBusy,
        Self::CancelWhileBusy,
        Self::StopWhileBusy,
        Self::StopOnRequest,
        Self::DropReaper,
        Self::DropRuntime,
    ];

    /// Returns whether shims may still run when the reaper shuts down.
    pub(crate) fn is_while_busy(self) -> bool {
        matches!(self, Self::ShutDownWhileBusy | Self::CancelWhileBusy) || self.stops()
    }

    /// Returns whether the reaper may end a shim with a signal.
    pub(crate) fn stops(self) -> bool {
        matches!(self, Self::StopWhileBusy | Self::StopOnRequest)
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
    pub(crate) ending: Ending,
    trouble: Trouble,
    pidfd: bool,
    io_uring: bool,
    subreaper: bool,
    interval: Duration,
    /// Of a stop of all shims.
    stop_grace: Duration,
    pub(crate) rules: Rules,
}

impl Round {
    pub(crate) fn random(
        number: u64,
        keeps_statuses: bool,
        io_uring: bool,
        random: &mut Random,
    ) -> Self {
        let ending = random.pick(&Ending::ALL);
        let trouble = Trouble::random(random);
        let reaps_children = trouble.reaps_children();
        let pidfd = !random.one_in(5);
        // A spawn during a shutdown kills its child, which may leave orphans.
        let subreaper = random.one_in(2) && !ending.is_while_busy() && !reaps_children;
        // The final drain of a shutdown reaps children in their grace period.
        let owners_wait = random.one_in(2) && !ending.is_while_busy() && !reaps_children;
        let low_descriptors = trouble == Trouble::LowDescriptors;
        let intervals: &[u64] = if trouble == Trouble::WorkerPanics {
            // The backoff after panics is a multiple of it.
            &[2, 20]
        } else {
            &[2, 20, 250]
        };
        Self {
            number,
            driver: random.pick(&[
                Driver::MultiThread,
                Driver::CurrentThread,
                Driver::Dedicated,
            ]),
            ending,
            trouble,
            pidfd,
            io_uring,
            subreaper,
            interval: Duration::from_millis(random.pick(intervals)),
            stop_grace: random.millis(40),
            rules: Rules {
                owners_wait,
                orphans: subreaper && !owners_wait,
                keep_handles: !ending.loses_handles(),
                tracers: pidfd && !ending.is_while_busy() && !reaps_children && !low_descriptors,
                reaper_only: reaps_children,
                keeps_statuses: keeps_statuses && pidfd && !low_descriptors,
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
        let trouble = Some(self.trouble.begin(runtime.handle(), random));
        let tasks = (0..=random.below(400))
            .map(|_| Lifecycle {
                population: Arc::clone(&population),
                reaper: reaper.clone(),
                random: random.fork(),
            })
            .map(|lifecycle| runtime.spawn(lifecycle.run()))
            .collect();
        let work = Work { tasks, trouble };
        let pause = random.millis(40);
        let observed = (self.ending != Ending::DropReaper).then(|| reaper.clone());
        let running = self.end(pause, runtime, work, reaper, &token, &population);
        if let Some(stats) = observed.map(|reaper| reaper.stats()) {
            tally.add_events(Event::ForeignWait, stats.foreign_waits_total);
            tally.add_events(Event::WorkerRestart, stats.respawns_total);
            tally.add_events(Event::Orphan, stats.orphans_reaped_total);
        }
        tally.add_events(Event::RecycledPid, population.recycled());
        self.check(&population, streams, &running, &sink, tally);
    }

    fn start(&self, runtime: &Runtime, token: &CancellationToken, sink: MetricsSink) -> ShimReaper {
        let grace_millis = if self.rules.owners_wait {
            1_000_000
        } else {
            // Longer than an owner needs on a loaded machine.
            500
        };
        let mut builder = ShimReaper::builder()
            .pidfd(self.pidfd)
            .io_uring(self.io_uring)
            .early_pidfd(self.rules.reaper_only)
            .sweep_interval(self.interval)
            .owner_grace(Duration::from_millis(grace_millis))
            .metrics_sink(sink);
        builder = if self.ending == Ending::StopOnRequest {
            builder.shutdown_stopping_token(token.clone(), self.stop_grace)
        } else {
            builder.shutdown_token(token.clone())
        };
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
        mut work: Work,
        reaper: ShimReaper,
        token: &CancellationToken,
        population: &Population,
    ) -> HashSet<u32> {
        let report = match self.ending {
            Ending::AwaitThenShutDown => {
                self.await_all(&runtime, work, population);
                runtime.block_on(reaper.shutdown())
            }
            Ending::AwaitThenShutDownSync => {
                self.await_all(&runtime, work, population);
                reaper.shutdown_sync()
            }
            Ending::AwaitThenCancel => {
                self.await_all(&runtime, work, population);
                token.cancel();
                runtime.block_on(reaper.shutdown())
            }
            Ending::ShutDownWhileBusy => {
                pass(&runtime, pause, &mut work);
                runtime.block_on(reaper.shutdown())
            }
            Ending::CancelWhileBusy => {
                pass(&runtime, pause, &mut work);
                token.cancel();
                reaper.shutdown_sync()
            }
            Ending::StopWhileBusy => {
                pass(&runtime, pause, &mut work);
                drop(runtime.block_on(async { timeout(pause, reaper.stop_all(pause)).await }));
                runtime.block_on(reaper.shutdown_stopping(self.stop_grace))
            }
            Ending::StopOnRequest => {
                pass(&runtime, pause, &mut work);
                token.cancel();
                runtime.block_on(reaper.shutdown())
            }
            Ending::DropReaper => {
                drop(reaper);
                self.await_all(&runtime, work, population);
                // Dropping the last handle ends the streams.
                population.drop_handles();
                runtime.shutdown_background();
                return HashSet::new();
            }
            Ending::DropRuntime => {
                pass(&runtime, pause, &mut work);
                drop(runtime);
                // Polled once on a tokio runtime that never runs again.
                let other = Builder::new_current_thread().enable_all().build().unwrap();
                for shim in population.registered().iter() {
                    let Some(handle) = &shim.handle else { continue };
                    let _ = other.block_on(async { poll!(handle.clone()) });
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

    fn await_all(&self, runtime: &Runtime, work: Work, population: &Population) {
        let _ = runtime.block_on(async { timeout(census::TIMEOUT, join_all(work.tasks)).await });
        drop(work.trouble);
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
}

/// The tasks of a round, and what goes wrong until they have ended.
struct Work {
    tasks: Vec<JoinHandle<()>>,
    trouble: Option<TroubleMaker>,
}

/// Lets the round go on, and then ends its trouble.
fn pass(runtime: &Runtime, pause: Duration, work: &mut Work) {
    runtime.block_on(async { sleep(pause).await });
    work.trouble = None;
}
