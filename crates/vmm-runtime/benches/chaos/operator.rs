//! Creates boxes one after the other, operates on each and kills its processes, one or two actions
//! at a time, and checks what the runtime reports after each action.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use shim_reaper::{Pidfd, Signal};
use tokio::join;
use tokio::time::sleep;
use vmm_runtime::{BoxSpec, BoxStatus, Ready};

use crate::account::{Account, Known, Slot};
use crate::client::Client;
use crate::leftovers;
use crate::losses::{Column, Losses};
use crate::oracle::Run;
use crate::payload::{Kind, Ledger, Payload};
use crate::server::{Op, Reply, View};

pub(crate) struct Operator {
    number: usize,
    rng: Rng,
    /// Whether boxes with limits have control groups.
    has_groups: bool,
    client: Arc<Client>,
    account: Account,
    created: usize,
    /// The ids of the boxes that were created.
    ids: Vec<String>,
}

/// How long a box may be missing because its runtime has ended: a killed runtime is soon replaced.
const INFO_TIMEOUT: Duration = Duration::from_secs(90);
const INTERRUPTION_PAUSE: Duration = Duration::from_millis(5);
/// How often the removal of the last box is tried.
const REMOVALS: usize = 10;
const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGALRM];

impl Operator {
    pub(crate) fn new(
        number: usize,
        seed: u64,
        has_groups: bool,
        root: &Path,
        client: Arc<Client>,
        losses: Arc<Losses>,
    ) -> Self {
        Self {
            number,
            rng: Rng::with_seed(seed),
            has_groups,
            client,
            account: Account::new(root, losses),
            created: 0,
            ids: Vec::new(),
        }
    }

    pub(crate) fn slot(&self) -> Arc<Mutex<Slot>> {
        Arc::clone(&self.account.slot)
    }

    /// Operates until `until`, then removes the last box. Returns the ids of all boxes it created.
    pub(crate) async fn run(mut self, until: Instant) -> Vec<String> {
        while Instant::now() < until {
            self.step().await;
        }
        for _ in 0..REMOVALS {
            match self.account.known {
                Known::Absent => break,
                Known::Down(_) => self.remove(true).await,
                _ => {
                    self.account.with_run(|run| run.stop(true));
                    let stop = Op::StopWithin(self.account.name.clone(), Duration::ZERO);
                    let reply = self.call(stop).await;
                    self.has_ended(reply);
                }
            }
            self.look().await;
        }
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
        self.created += 1;
        self.account.name = format!("box-{}-{}-", self.number, self.created);
        self.account.kind = Kind::ALL[self.rng.usize(..Kind::ALL.len())];
        let limited = self.rng.u8(..4) == 0;
        let payload = Payload {
            kind: self.account.kind,
            lasts: self.rng.u64(..600),
            ledger: self.account.ledger(),
            hides: limited && self.has_groups,
        };
        let program = std::env::current_exe().unwrap_or_default();
        let command = [program.display().to_string()]
            .into_iter()
            .chain(payload.args());
        let attached = self.rng.bool();
        let mut spec = BoxSpec::new(command)
            .name(&self.account.name)
            .detached(!attached);
        if self.account.kind == Kind::Deaf {
            spec = spec.stop_grace(Duration::from_millis(300));
        }
        if self.rng.u8(..4) == 0 {
            spec = spec.ready(Ready::Notified);
        }
        if limited {
            spec = spec.cpus(1).memory_mib(128);
        }
        *self.account.locked() = Slot {
            attached,
            run: None,
        };
        self.account
            .note(format!("{:?}, attached: {attached}", self.account.kind));
        match self.call(Op::Create(Box::new(spec))).await.0 {
            Ok(views) => self.record_created(views.into_iter().next()),
            Err(failure) if Self::is_interruption(&failure) => {
                let found = self.info().await.map(|(view, _)| view);
                self.record_created(found);
            }
            Err(failure) => self.account.lose(Column::Refused, &failure),
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
        let pause = Duration::from_millis(self.rng.u64(..300));
        let signal = SIGNALS[self.rng.usize(..SIGNALS.len())];
        let victim = self.rng.u8(..4);
        let kill = |op: &Self, choice| match choice {
            0 => op.kill_payload(&view, signal),
            1 => op.kill_shim(&view),
            _ => false,
        };
        match self.rng.u8(..12) {
            0 | 1 => sleep(pause).await,
            2 => self.list().await,
            3 => self.remove(false).await,
            4 => self.remove(true).await,
            5 => _ = kill(self, victim % 2),
            6 | 7 => {
                if self.account.kind.ends_by_itself() || kill(self, 0) {
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
                let race = async {
                    sleep(pause / 100).await;
                    kill(self, victim)
                };
                let (reply, _) = join!(self.call(op), race);
                self.has_ended(reply);
            }
        }
    }

    /// Starts the box. `race` is a concurrent operation that cancels the start.
    async fn start(&mut self, race: Option<Op>) {
        let Known::Down(before) = self.account.known.clone() else {
            return;
        };
        let begun = Ledger::read(&self.account.ledger()).begun;
        let mut run = Run::new(self.account.kind, begun, self.client.epoch());
        if race.is_some() {
            run.cancelled = true;
            run.stop(true);
        }
        self.account.locked().run = Some(run);
        self.account.known = Known::Unsure(before);
        let start = self.call(Op::Start(self.account.name.clone()));
        let other = async {
            match &race {
                Some(op) => Some(self.call(op.clone()).await.0),
                None => None,
            }
        };
        let ((started, epoch), other) = join!(start, other);
        self.account.with_run(|run| run.runtime = epoch);
        let closing = self.client.epoch() != epoch;
        match started {
            Ok(views) => {
                self.account.known = views.into_iter().next().map_or(Known::Absent, Known::Up)
            }
            Err(failure) => {
                self.account.with_run(|run| {
                    run.interrupted = true;
                    run.stop(true);
                });
                let cancelled = failure.starts_with("Start") && (race.is_some() || closing)
                    || failure.starts_with("NotFound") && race.is_some();
                if !cancelled && !Self::is_interruption(&failure) {
                    self.account.lose(Column::Refused, &failure);
                }
            }
        }
        match (race, other) {
            (Some(Op::Remove(..)), Some(Ok(_))) => self.removed(),
            (Some(Op::Remove(..)), Some(Err(_))) => self.check_removed().await,
            (_, Some(reply)) => self.check(&reply),
            _ => {}
        }
    }

    async fn remove(&mut self, force: bool) {
        if force {
            self.account.with_run(|run| run.stop(true));
        }
        let may_run = !matches!(self.account.known, Known::Down(_));
        match self
            .call(Op::Remove(self.account.name.clone(), force))
            .await
            .0
        {
            Ok(_) => self.removed(),
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
        self.account.locked().run = None;
        let left = leftovers::processes(&self.account.name);
        if !left.is_empty() {
            self.account.lose(Column::ProcessesLeft, left);
        }
    }

    /// Checks whether the box was removed.
    async fn check_removed(&mut self) {
        if self.info().await.is_none() {
            self.account.known = Known::Absent;
        }
    }

    async fn list(&self) {
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
            Some((view, epoch)) => self.account.observe(view, epoch),
            None => {
                self.account.lose(Column::EndsLost, "box not found");
                self.account.known = Known::Absent;
            }
        }
    }

    /// Returns the state of the box, or `None` if it was not found.
    async fn info(&self) -> Option<(View, u64)> {
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

    fn kill_payload(&self, view: &View, signal: Signal) -> bool {
        let cause = |run: &mut Run| run.signals.push(signal.as_raw());
        self.kill(view.payload_pid, signal, cause)
    }

    fn kill_shim(&self, view: &View) -> bool {
        self.kill(view.pid, Signal::SIGKILL, |run| run.shim_killed = true)
    }

    /// Signals a process of this box. If another process has the pid by now, it gets no signal.
    fn kill(&self, pid: Option<u32>, signal: Signal, cause: impl FnOnce(&mut Run)) -> bool {
        let of_the_box = |pid: &u32| {
            let mut marks = self.ids.last().into_iter().chain([&self.account.name]);
            marks.any(|mark| leftovers::mentions(*pid, mark))
        };
        let Some((pid, process)) = pid
            .and_then(|pid| Some((pid, Pidfd::open(pid).ok()?)))
            .filter(|(pid, _)| of_the_box(pid))
        else {
            return false;
        };
        self.account.with_run(cause);
        let sent = process.send_signal(signal);
        self.account.note(format!("{signal} to {pid}: {sent:?}"));
        sent.is_ok()
    }

    async fn call(&self, op: Op) -> (Reply, u64) {
        let (reply, epoch) = self.client.call(op.clone()).await;
        if !matches!(op, Op::Info(_) | Op::List | Op::Create(_)) || reply.is_err() {
            self.account.note(format!("{op:?} in {epoch}: {reply:?}"));
        }
        if matches!(&reply, Err(failure) if failure.starts_with("Hung")) {
            self.account.lose(Column::Hung, &op);
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
