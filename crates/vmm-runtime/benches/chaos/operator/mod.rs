//! Creates boxes one after the other, operates on each and kills its processes, one or two actions
//! at a time, and checks what the runtime reports after each action.

mod plan;
mod signals;
mod start;
mod unattended;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::join;
use tokio::time::sleep;
use vmm_runtime::{BoxStatus, HealthState};

use crate::account::{Account, Known};
use crate::client::Client;
use crate::goal::Goal;
use crate::losses::{Column, Losses};
use crate::observer::ObservedRun;
use crate::server::{Change, Op, Reply, View};
use crate::slots::Slots;
use plan::{Plan, Special};

/// What all operators share.
pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) goal: Arc<Goal>,
    /// The directory of the boxes.
    pub(crate) boxes: PathBuf,
    /// The abstract address of the observer.
    pub(crate) observer: String,
    /// Whether boxes with limits have control groups.
    pub(crate) has_groups: bool,
}

pub(crate) struct Operator {
    shared: Arc<Shared>,
    rng: Rng,
    account: Account,
    special: Special,
    /// The ids of the boxes that were created.
    ids: Vec<String>,
}

/// How long a box may be missing because its runtime has ended: a killed runtime is soon replaced.
const INFO_TIMEOUT: Duration = Duration::from_secs(90);
const INTERRUPTION_PAUSE: Duration = Duration::from_millis(5);
/// How often the removal of a box is tried.
const REMOVALS: usize = 50;

impl Operator {
    pub(crate) fn new(number: usize, seed: u64, shared: Arc<Shared>) -> Self {
        let (slots, losses) = (Arc::clone(&shared.slots), Arc::clone(&shared.losses));
        Self {
            shared,
            rng: Rng::with_seed(seed),
            account: Account::new(number, slots, losses),
            special: Special::Nothing,
            ids: Vec::new(),
        }
    }

    /// Operates until the goal is reached, then removes the last box. Returns the ids of all boxes
    /// it created.
    pub(crate) async fn run(mut self) -> Vec<String> {
        while !self.shared.goal.is_reached() {
            self.step().await;
        }
        if let Known::Up(_) | Known::Unsure(_) = self.account.known {
            let reply = self.stop_within(Duration::ZERO).await;
            self.has_ended(reply);
            self.look().await;
        }
        self.remove_until_gone().await;
        self.ids
    }

    async fn step(&mut self) {
        match &self.account.known {
            Known::Absent => self.create().await,
            Known::Down(_) => self.act_on_stopped().await,
            Known::Up(view) | Known::Unsure(view) => self.act_on_running(view.clone()).await,
        }
        self.look().await;
    }

    async fn create(&mut self) {
        let plan = Plan::choose(&mut self.rng);
        let restarts = matches!(plan.special, Special::Restart(_));
        self.account.renew(plan.kind, plan.attached, restarts);
        self.account.note(format!("{plan:?}"));
        self.special = plan.special;
        let Shared {
            observer,
            has_groups,
            ..
        } = &*self.shared;
        let spec = plan.spec(&self.account.name, observer, *has_groups);
        match self.call(Op::Create(Box::new(spec))).await.0 {
            Ok(views) => self.record_created(views.into_iter().next()),
            Err(failure) if Self::is_interruption(&failure) => {
                let found = self.info().await.map(|(view, _)| view);
                self.record_created(found);
            }
            Err(failure) => self.account.lose(Column::Refused, &failure),
        }
        if let Known::Absent = self.account.known {
            return;
        }
        match self.special {
            Special::Restart(policy) => self.restart(policy).await,
            Special::AutoRemove => self.auto_remove().await,
            Special::Nothing | Special::Health(_) => {}
        }
    }

    fn record_created(&mut self, view: Option<View>) {
        if let Some(view) = view {
            self.ids.push(view.id.clone());
            self.account.known = Known::Down(view);
        }
    }

    /// Acts on a box that is not running.
    async fn act_on_stopped(&mut self) {
        let name = self.account.name.clone();
        let grace = Duration::from_millis(self.rng.u64(..20));
        match self.rng.u8(..12) {
            0..6 => self.start(None).await,
            6 | 7 => self.start(Some(Op::StopWithin(name, grace))).await,
            8 => self.start(Some(Op::Remove(name, true))).await,
            9 => self.remove(false).await,
            10 => {
                let reply = self.call(Op::Stop(name)).await;
                self.has_ended(reply);
            }
            _ => self.list().await,
        }
    }

    /// Acts on a box that is running, or may be.
    async fn act_on_running(&mut self, view: View) {
        let name = self.account.name.clone();
        let pause = Duration::from_millis(self.rng.u64(..100));
        match self.rng.u8(..12) {
            0 | 1 => sleep(pause).await,
            2 => self.list().await,
            3 => self.remove(false).await,
            4 => self.remove(true).await,
            5 | 6 => {
                if let Some(reply) = self.signal_processes(&view, pause).await {
                    self.has_ended(reply);
                }
            }
            7 | 8 => {
                if self.account.kind.ends_by_itself() || self.kill_payload(&view) {
                    let reply = self.call(Op::Wait(name)).await;
                    self.has_ended(reply);
                }
            }
            _ => {
                let (op, forced) = if self.rng.bool() {
                    (Op::Stop(name), false)
                } else {
                    (Op::StopWithin(name, pause / 4), true)
                };
                self.account.with_run(|run| run.stop(forced));
                let kills = self.rng.bool();
                let race = async {
                    sleep(pause / 100).await;
                    kills && self.kill_shim(&view)
                };
                let client = &self.shared.client;
                let (reply, _) = join!(client.call(op.clone()), race);
                let reply = self.note_reply(&op, reply);
                self.has_ended(reply);
            }
        }
    }

    async fn remove(&mut self, force: bool) {
        if force {
            self.account.with_run(|run| run.stop(true));
        }
        let may_run = !matches!(self.account.known, Known::Down(_));
        let remove = Op::Remove(self.account.name.clone(), force);
        let (reply, epoch) = self.call(remove).await;
        match reply {
            Ok(_) => self.removal_reported(epoch),
            Err(failure) if failure.starts_with("Running") && !force && may_run => {}
            Err(failure) => {
                if !Self::is_interruption(&failure) {
                    self.account.lose(Column::Refused, &failure);
                }
                self.check_removed().await;
            }
        }
    }

    /// Checks that nothing is left of a removed box.
    fn removed(&mut self) {
        self.account.known = Known::Absent;
        let (running, has_lived) = {
            let slot = self.account.locked();
            let running = slot.observed.iter().flat_map(ObservedRun::running);
            (running.collect::<Vec<_>>(), slot.run.is_some())
        };
        if !running.is_empty() {
            self.account.lose(Column::ProcessesLeft, running);
        }
        if has_lived {
            self.shared.goal.count_life();
        }
    }

    /// Checks that nothing is left of a box whose removal the runtime of this epoch has reported.
    fn removal_reported(&mut self, epoch: u64) {
        let last = self.account.sequence.last(epoch);
        if last != Some(Change::Removed) && self.shared.client.epoch() == epoch {
            let details = ("no event of the removal", last);
            self.account.lose(Column::EventsLost, details);
        }
        let id = self.ids.last().map_or("", String::as_str);
        // What is renamed is deleted behind the removal; the end of the program checks that.
        let path = self.shared.boxes.join(id);
        if path.exists() {
            self.account.lose(Column::FilesLeft, path);
        }
        self.removed();
    }

    /// Checks whether the box was removed.
    async fn check_removed(&mut self) {
        if self.info().await.is_none() {
            self.removed();
        }
    }

    /// Removes the box by force until it is gone, also if runtimes end meanwhile.
    async fn remove_until_gone(&mut self) {
        for _ in 0..REMOVALS {
            if let Known::Absent = self.account.known {
                return;
            }
            self.remove(true).await;
        }
        self.account.lose(Column::Refused, "not removed");
    }

    async fn list(&mut self) {
        let reply = self.call(Op::List).await.0;
        self.check(&reply);
        if let Ok(views) = reply
            && !views.iter().any(|view| view.name == self.account.name)
        {
            self.account
                .lose(Column::EndsLost, "the list lacks the box");
        }
    }

    /// Checks the reply to an operation after which the box is not running.
    fn has_ended(&mut self, (reply, epoch): (Reply, u64)) {
        self.check(&reply);
        for view in reply.into_iter().flatten() {
            if view.status == BoxStatus::Running {
                self.account.lose(Column::EndsLost, "still running");
            }
            self.account.observe(view, epoch);
        }
    }

    async fn look(&mut self) {
        if matches!(self.account.known, Known::Absent) {
            return;
        }
        match self.info().await {
            Some((view, epoch)) => {
                self.check_health(&view);
                if view.is_up() || matches!(self.account.known, Known::Down(_)) {
                    self.account.observe(view, epoch);
                } else {
                    // A runtime that finds an end when it opens may still be cleaning up.
                    let wait = Op::Wait(self.account.name.clone());
                    let reply = self.call(wait).await;
                    self.has_ended(reply);
                }
            }
            None => {
                self.account.lose(Column::EndsLost, "box not found");
                self.account.known = Known::Absent;
            }
        }
    }

    fn check_health(&self, view: &View) {
        let expected = match self.special {
            Special::Health(true) => [HealthState::Starting, HealthState::Healthy],
            Special::Health(false) => [HealthState::Starting, HealthState::Unhealthy],
            _ => return,
        };
        let is_running = view.status == BoxStatus::Running;
        if is_running && !view.health.is_some_and(|health| expected.contains(&health)) {
            self.account.lose(Column::HealthWrong, view);
        }
    }

    /// Returns the state of the box, or `None` if it was not found.
    async fn info(&mut self) -> Option<(View, u64)> {
        let deadline = Instant::now() + INFO_TIMEOUT;
        loop {
            let (reply, epoch) = self.call(Op::Info(self.account.name.clone())).await;
            match reply {
                Ok(views) => return Some((views.into_iter().next()?, epoch)),
                Err(failure) if failure.starts_with("NotFound") => return None,
                Err(failure) if Self::is_interruption(&failure) && Instant::now() < deadline => {
                    sleep(INTERRUPTION_PAUSE).await;
                }
                Err(failure) => {
                    self.account.lose(Column::Refused, &failure);
                    return None;
                }
            }
        }
    }

    /// Stops the box, with force after `grace`.
    async fn stop_within(&mut self, grace: Duration) -> (Reply, u64) {
        self.account.with_run(|run| run.stop(true));
        let name = self.account.name.clone();
        self.call(Op::StopWithin(name, grace)).await
    }

    async fn call(&mut self, op: Op) -> (Reply, u64) {
        let reply = self.shared.client.call(op.clone()).await;
        self.note_reply(&op, reply)
    }

    /// Judges the events that came before this reply.
    fn note_reply(&mut self, op: &Op, (reply, epoch): (Reply, u64)) -> (Reply, u64) {
        self.account.judge_events();
        if !matches!(op, Op::Info(_) | Op::List | Op::Create(_)) || reply.is_err() {
            self.account.note(format!("{op:?} in {epoch}: {reply:?}"));
        }
        if matches!(&reply, Err(failure) if failure.starts_with("Hung")) {
            self.account.lose(Column::Hung, op);
        }
        (reply, epoch)
    }

    /// Checks the reply to an operation that must not fail.
    fn check(&self, reply: &Reply) {
        if let Err(failure) = reply
            && !Self::is_interruption(failure)
        {
            self.account.lose(Column::Refused, failure);
        }
    }

    /// Returns whether the failure means that the runtime is ending or has ended, in which case it
    /// may have done what was requested.
    fn is_interruption(failure: &str) -> bool {
        ["Gone", "Closed", "Hung"]
            .iter()
            .any(|name| failure.starts_with(name))
    }
}
