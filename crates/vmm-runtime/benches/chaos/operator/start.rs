//! Starts boxes, and cancels some of the starts.

use tokio::join;

use super::Operator;
use crate::account::Known;
use crate::losses::Column;
use crate::oracle::Run;
use crate::server::{Change, Op};

impl Operator {
    /// Starts the box. `race` is a concurrent operation that cancels the start.
    pub(super) async fn start(&mut self, race: Option<Op>) {
        let Known::Down(before) = self.account.known.clone() else {
            return;
        };
        let kind = self.account.kind;
        {
            let mut slot = self.account.locked();
            let mut run = Run::new(kind, slot.observed.len(), self.shared.client.epoch());
            if race.is_some() {
                run.cancelled = true;
                run.stop(true);
            }
            slot.run = Some(run);
        }
        self.account.known = Known::Unsure(before);
        let op = Op::Start(self.account.name.clone());
        let client = &self.shared.client;
        let other = async {
            match &race {
                Some(op) => Some(client.call(op.clone()).await),
                None => None,
            }
        };
        let (reply, other) = join!(client.call(op.clone()), other);
        let closing = client.epoch() != reply.1;
        let (started, epoch) = self.note_reply(&op, reply);
        let mut other_epoch = epoch;
        let other = race.zip(other).map(|(op, reply)| {
            let (reply, epoch) = self.note_reply(&op, reply);
            other_epoch = epoch;
            (op, reply)
        });
        self.account.with_run(|run| run.runtime = epoch);
        match started {
            Ok(views) => {
                let last = self.account.sequence.last(epoch);
                let is_reported = matches!(
                    last,
                    Some(Change::Started | Change::Health | Change::Ended | Change::Removed)
                );
                if !is_reported && !closing {
                    let details = ("no event of the start", last);
                    self.account.lose(Column::EventsLost, details);
                }
                if kind.cannot_start() {
                    self.account.lose(Column::EndsLost, "it has started");
                }
                self.account.known = views.into_iter().next().map_or(Known::Absent, Known::Up);
            }
            Err(failure) => {
                let must_fail = kind.cannot_start() && failure.starts_with("Start");
                let cancelled = failure.starts_with("Start") && (other.is_some() || closing)
                    || failure.starts_with("NotFound") && other.is_some();
                if !must_fail || cancelled {
                    self.account.with_run(|run| {
                        run.interrupted = true;
                        run.stop(true);
                    });
                }
                if !must_fail && !cancelled && !Self::is_interruption(&failure) {
                    self.account.lose(Column::Refused, &failure);
                }
            }
        }
        match other {
            Some((Op::Remove(..), Ok(_))) => self.removal_reported(other_epoch),
            Some((Op::Remove(..), Err(_))) => self.check_removed().await,
            Some((_, reply)) => self.check(&reply),
            None => {}
        }
    }
}
