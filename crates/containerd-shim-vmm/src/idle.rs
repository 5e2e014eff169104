use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counts what uses the server: its containers, and those that are being created.
#[derive(Clone, Debug, Default)]
pub(crate) struct UseCount(watch::Sender<Uses>);

#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    count: usize,
    /// Whether nothing else can use the server.
    is_closed: bool,
}

/// Something that uses the server, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse(watch::Sender<Uses>);

impl UseCount {
    /// Begins a use; `None` if the server is closed.
    pub(crate) fn begin(&self) -> Option<InUse> {
        let is_open = self.0.send_if_modified(|uses| {
            uses.count += usize::from(!uses.is_closed);
            !uses.is_closed
        });
        is_open.then(|| InUse(self.0.clone()))
    }

    /// Lets nothing else use the server.
    pub(crate) fn close(&self) {
        self.0.send_modify(|uses| uses.is_closed = true);
    }

    /// Waits until nothing has used the server for this time, and closes it.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing before it returns.
    pub(crate) async fn close_when_idle(&self, duration: Duration) {
        let mut uses = self.0.subscribe();
        loop {
            // This value has a sender, so neither wait fails.
            let _ = uses.wait_for(|uses| uses.count == 0).await;
            let is_changed = timeout(duration, uses.changed()).await.is_ok();
            let close = |uses: &mut Uses| {
                uses.is_closed = uses.count == 0;
                uses.is_closed
            };
            // A use can have begun after the time was over.
            if !is_changed && self.0.send_if_modified(close) {
                return;
            }
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.send_modify(|uses| uses.count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_server_is_idle_after_its_last_use() {
        let uses = UseCount::default();
        let one = uses.begin().unwrap();
        let idle = tokio::spawn({
            let uses = uses.clone();
            async move { uses.close_when_idle(DURATION).await }
        });
        tokio::time::sleep(DURATION * 10).await;
        assert!(!idle.is_finished());
        drop(one);
        tokio::time::sleep(DURATION / 2).await;
        drop(uses.begin().unwrap());
        tokio::time::sleep(DURATION - Duration::from_secs(1)).await;
        assert!(!idle.is_finished());
        idle.await.unwrap();
        assert!(uses.begin().is_none(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_use_that_begins_when_the_time_is_over_keeps_the_server() {
        let uses = UseCount::default();
        let mut idle = Box::pin(uses.close_when_idle(DURATION));
        tokio::select! {
            biased;
            () = &mut idle => panic!("closed"),
            () = tokio::time::sleep(DURATION - Duration::from_millis(1)) => {}
        }
        // The time is over when the server looks at the use for the next time.
        tokio::time::advance(Duration::from_secs(1)).await;
        let one = uses.begin().unwrap();
        let is_closed = timeout(DURATION * 10, &mut idle).await.is_ok();
        assert!(!is_closed);
        drop(one);
        idle.await;
    }
}
