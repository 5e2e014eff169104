use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counts what uses the server: its containers, and those that are being created.
#[derive(Clone, Debug, Default)]
pub(crate) struct UseCount(watch::Sender<usize>);

/// Something that uses the server, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse(watch::Sender<usize>);

impl UseCount {
    pub(crate) fn begin(&self) -> InUse {
        self.0.send_modify(|count| *count += 1);
        InUse(self.0.clone())
    }

    /// Waits until nothing has used the server for this time.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub(crate) async fn wait_idle(&self, duration: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // This value has a sender, so neither wait fails.
            let _ = count.wait_for(|count| *count == 0).await;
            if timeout(duration, count.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_server_is_idle_after_its_last_use() {
        let uses = UseCount::default();
        let one = uses.begin();
        let idle = tokio::spawn({
            let uses = uses.clone();
            async move { uses.wait_idle(DURATION).await }
        });
        tokio::time::sleep(DURATION * 10).await;
        assert!(!idle.is_finished());
        drop(one);
        tokio::time::sleep(DURATION / 2).await;
        drop(uses.begin());
        tokio::time::sleep(DURATION - Duration::from_secs(1)).await;
        assert!(!idle.is_finished());
        idle.await.unwrap();
    }
}
