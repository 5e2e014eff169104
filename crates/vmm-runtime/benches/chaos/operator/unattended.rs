//! Operates on boxes that the runtime restarts or removes by itself.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use vmm_runtime::{BoxStatus, RestartPolicy};

use super::{INFO_TIMEOUT, INTERRUPTION_PAUSE, Operator};
use crate::losses::Column;
use crate::oracle::Run;
use crate::server::{Change, Op, View};

/// What was last requested of a box with a restart policy.
#[derive(Clone, Copy, Debug)]
enum Request {
    Start,
    /// A stop, of the runtime of this epoch. Whether the box was started before may be unknown.
    Stop {
        epoch: u64,
        was_started: bool,
    },
    /// The runtime ended first, and may or may not have begun.
    Interrupted,
}

impl Operator {
    /// Starts a box with a restart policy, acts on it a few times, and removes it.
    pub(super) async fn restart(&mut self, policy: RestartPolicy) {
        let mut request = self.launch().await;
        for _ in 0..self.rng.u8(1..6) {
            let name = self.account.name.clone();
            let Some((view, epoch)) = self.info().await else {
                self.account.lose(Column::EndsLost, "box not found");
                break;
            };
            self.check_restarts(policy, request, &view, epoch);
            let pause = Duration::from_millis(self.rng.u64(..150));
            let stop = match self.rng.u8(..8) {
                0 | 1 => {
                    sleep(pause).await;
                    None
                }
                2 => self.signal_processes(&view, pause).await,
                3 | 4 if self.account.kind.ends_by_itself() => {
                    let (reply, _) = self.call(Op::Wait(name)).await;
                    self.check(&reply);
                    None
                }
                5 => {
                    request = self.launch().await;
                    None
                }
                _ => Some(self.stop_within(pause).await),
            };
            if let Some((reply, epoch)) = stop {
                self.check(&reply);
                let was_started = match request {
                    Request::Start => true,
                    Request::Stop { was_started, .. } => was_started,
                    Request::Interrupted => false,
                };
                request = match reply {
                    Ok(_) => Request::Stop { epoch, was_started },
                    Err(_) => Request::Interrupted,
                };
                for view in reply.iter().flatten() {
                    self.check_restarts(policy, request, view, epoch);
                }
            }
        }
        self.remove_until_gone().await;
    }

    /// Starts a box that is removed when it has ended, and waits until it is gone.
    pub(super) async fn auto_remove(&mut self) {
        let mut last_seen = 0;
        while let Some((view, epoch)) = self.info().await {
            last_seen = epoch;
            let name = self.account.name.clone();
            let pause = Duration::from_millis(self.rng.u64(..100));
            if view.status == BoxStatus::Configured {
                self.launch().await;
                continue;
            }
            let reply = match self.rng.u8(..6) {
                0 => {
                    sleep(pause).await;
                    None
                }
                1 => self.signal_processes(&view, pause).await,
                2 if self.account.kind.ends_by_itself() => Some(self.call(Op::Wait(name)).await),
                _ => Some(self.stop_within(pause).await),
            };
            match reply {
                Some((Err(failure), _)) if failure.starts_with("NotFound") => {}
                Some((reply, _)) => self.check(&reply),
                None => {}
            }
        }
        // The event follows at once. A later runtime reports the removal only if it removes the box.
        let deadline = Instant::now() + INFO_TIMEOUT;
        let is_missing = |op: &Self| {
            op.shared.client.epoch() == last_seen
                && op.account.sequence.last(last_seen) != Some(Change::Removed)
        };
        while is_missing(self) && Instant::now() < deadline {
            sleep(INTERRUPTION_PAUSE).await;
            self.account.judge_events();
        }
        if is_missing(self) {
            let details = "no event of the automatic removal";
            self.account.lose(Column::EventsLost, details);
        }
        self.removed();
    }

    /// Starts the box. All its runs share one account, because the runtime also starts it.
    async fn launch(&mut self) -> Request {
        let kind = self.account.kind;
        let epoch = self.shared.client.epoch();
        let run = Run::new(kind, 0, epoch);
        self.account.locked().run.get_or_insert(run);
        let (reply, _) = self.call(Op::Start(self.account.name.clone())).await;
        let Err(failure) = reply else {
            return Request::Start;
        };
        let closing = self.shared.client.epoch() != epoch;
        if !kind.cannot_start() {
            self.account.with_run(|run| {
                run.interrupted = true;
                run.stop(true);
            });
        }
        let is_failed = failure.starts_with("Start") && (kind.cannot_start() || closing);
        if !is_failed && !Self::is_interruption(&failure) {
            self.account.lose(Column::Refused, &failure);
        }
        Request::Interrupted
    }

    /// Checks that the box is restarted if, and only if, its policy says so.
    fn check_restarts(&self, policy: RestartPolicy, request: Request, view: &View, epoch: u64) {
        let is_back = view.is_up() || view.restarting;
        let is_right = match (request, policy) {
            (Request::Interrupted, _) => true,
            // The next runtime starts it again.
            (
                Request::Stop {
                    epoch: stopped,
                    was_started,
                },
                RestartPolicy::Always,
            ) if stopped != epoch => is_back || !was_started,
            (Request::Stop { .. }, _) => !is_back,
            (Request::Start, RestartPolicy::OnFailure { max }) => {
                let failed = view.status == BoxStatus::Failed;
                let is_exhausted = max.is_some_and(|max| view.restarts >= max);
                view.is_up() || view.restarting == failed || is_exhausted && !view.restarting
            }
            (Request::Start, _) => is_back,
        };
        if !is_right {
            let details = (policy, request, view, epoch);
            self.account.lose(Column::RestartsWrong, details);
        }
    }
}
