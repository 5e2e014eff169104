use std::any::Any;
use std::future::{pending, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::ReaperCounter;
use crate::core::Core;
use crate::kernel::ProcessTable;
use crate::outbox::Outbox;
use crate::panic_payload::drop_panic_payload;
use crate::readiness::{Alarm, Host, KernelEvents, reap_when_ready};
use crate::shared::Shared;
use crate::stop;

/// The number of times that the backoff after consecutive panics doubles.
const MAX_BACKOFF_DOUBLINGS: u32 = 5;

/// The number of intervals after which the worker sweeps although tokio has not reported the timer of
/// the epoll. With a small number, the timer of tokio for this, which every sweep extends, would wake
/// the tokio runtime as often as the timer of the epoll does.
const FALLBACK_INTERVALS: u32 = 8;

/// What [`restart_on_panic`] drives: the worker of a reaper, or that of the simulation.
pub(crate) trait Drive {
    type Kernel: ProcessTable;

    fn core(&self) -> &Arc<Core<Self::Kernel>>;

    fn shared(&self) -> &Shared<Self::Kernel> {
        &self.core().shared
    }

    /// Returns whether the worker is needed no more.
    fn can_stop(&self) -> bool;

    /// Stops the shims and shuts down the reaper when the embedder requests it.
    async fn stop_on_request(&self) {
        let Some(request) = &self.shared().stop_request else {
            return pending().await;
        };
        request.token.cancelled().await;
        stop::shutdown_stopping_on_thread(self.core(), request.grace).await;
    }

    /// Shuts down the reaper after its token was cancelled.
    async fn shut_down(&self) {
        stop::shutdown_on_thread(self.core()).await;
    }
}

/// Runs the worker and restarts it after a panic, at once the first time, then with exponential
/// backoff.
pub(crate) async fn restart_on_panic(worker: &impl Drive, host: &impl Host) {
    let mut failures = 0;
    while let Err(panic) = catch_unwind(work(worker, host, &mut failures)).await {
        failures += 1;
        let backoff = if failures == 1 {
            Duration::ZERO
        } else {
            let doublings = (failures - 2).min(MAX_BACKOFF_DOUBLINGS);
            worker.shared().sweep_interval * 2_u32.pow(doublings)
        };
        worker.shared().counters.increment(ReaperCounter::Respawns);
        tracing::error!(
            panic = panic_message(&*panic),
            failures,
            ?backoff,
            "the worker of the reaper panicked and is restarted"
        );
        drop_panic_payload(panic);
        let (mut alarm, end) = (host.alarm(), Instant::now() + backoff);
        let pause = poll_fn(|cx| alarm.poll_expired(cx, end));
        if worker.shared().is_closing() {
            pause.await;
        } else {
            // A shutdown does not wait for the backoff.
            tokio::select! {
                () = worker.shared().token.cancelled() => {}
                () = pause => {}
            }
        }
    }
}

/// Runs a future. Returns the payload of its panic if it panics.
async fn catch_unwind<T>(future: impl Future<Output = T>) -> thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(cx));
        match panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("non-string panic payload")
}

async fn work(worker: &impl Drive, host: &impl Host, failures: &mut u32) {
    let core = worker.core();
    let shared = worker.shared();
    let mut outbox = Outbox::new();
    let mut events = host.kernel_events();
    let mut alarm = host.alarm();
    let mut next_sweep = Instant::now();
    // When to sweep although the timer of the epoll has not expired.
    let mut fallback = next_sweep;
    let mut sweep_due = true;
    let mut cancelled = pin!(shared.token.cancelled());
    let mut stopped = pin!(worker.stop_on_request());
    let mut woken = pin!(shared.wake_worker.notified());
    let mut deadline = core.reap_ready(&mut outbox).await;
    loop {
        fail_point!("shim_reaper::work");
        if sweep_due {
            deadline = core.sweep(&mut outbox).await;
            outbox.close_pidfds();
            *failures = 0;
            let now = Instant::now();
            next_sweep = (next_sweep + shared.sweep_interval).max(now);
            fallback = now + FALLBACK_INTERVALS * shared.sweep_interval;
            events.retry_setup(shared.sweep_interval);
        }
        if worker.can_stop() {
            return;
        }
        let sweep_at = if events.has_timer() {
            fallback
        } else {
            next_sweep
        };
        let deadlines = [deadline.map(Instant::from), shared.timers.next_deadline()];
        let wake_at = deadlines.into_iter().flatten().fold(sweep_at, Instant::min);
        let (is_event, next) = tokio::select! {
            biased;
            deadline = reap_when_ready(&events, core, &mut outbox, wake_at) => (true, deadline),
            () = &mut cancelled => {
                worker.shut_down().await;
                return;
            }
            () = &mut stopped => return,
            () = poll_fn(|cx| alarm.poll_expired(cx, wake_at)) => (false, None),
            () = &mut woken => {
                woken.set(shared.wake_worker.notified());
                (false, None)
            }
        };
        deadline = match next {
            Some(deadline) => deadline,
            None => core.reap_ready(&mut outbox).await,
        };
        shared.timers.take_expired(&mut outbox.wakers);
        outbox.deliver();
        sweep_due = events.take_tick();
        // Tokio should have reported the timer of the epoll before.
        if sweep_at <= Instant::now() || (sweep_due && !is_event) {
            sweep_due = true;
            // A forked child shares the epoll of tokio, and may take its events.
            events.register_again(shared.sweep_interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShimReaper;

    /// Only the timer of tokio makes it sweep.
    #[tokio::test(start_paused = true)]
    #[cfg_attr(miri, ignore = "makes system calls")]
    async fn reaper_without_pidfds_sweeps_once_an_interval() {
        let interval = Duration::from_millis(250);
        let builder = ShimReaper::builder().sweep_interval(interval);
        let reaper = builder.pidfd(false).start();
        tokio::time::sleep(10 * interval + interval / 2).await;
        assert_eq!(reaper.stats().sweeps_completed, 11);
    }

    /// Only the timer of the epoll makes it sweep: the clock of tokio stands still while a blocking task
    /// runs.
    #[tokio::test(start_paused = true)]
    #[cfg_attr(miri, ignore = "makes system calls")]
    async fn timer_of_the_epoll_makes_the_reaper_sweep() {
        let builder = ShimReaper::builder().sweep_interval(Duration::from_millis(10));
        let reaper = builder.start();
        let sweeps = tokio::task::spawn_blocking(move || {
            let start = std::time::Instant::now();
            while reaper.stats().sweeps_completed < 3 {
                assert!(start.elapsed() < Duration::from_secs(60));
                thread::sleep(Duration::from_millis(1));
            }
        });
        sweeps.await.unwrap();
    }

    #[test]
    fn message_of_a_panic_is_its_text() {
        let text: Box<dyn Any + Send> = Box::new("text");
        assert_eq!(panic_message(&*text), "text");
        let formatted: Box<dyn Any + Send> = Box::new(String::from("formatted"));
        assert_eq!(panic_message(&*formatted), "formatted");
        let other: Box<dyn Any + Send> = Box::new(7);
        assert_eq!(panic_message(&*other), "non-string panic payload");
    }
}
