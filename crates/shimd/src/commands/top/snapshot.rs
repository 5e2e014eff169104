use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use vmm_rest::wire::{BoxResponse, RuntimeMetricsResponse};
use vmm_rest::{Client, ClientError};

use super::details::Details;
use super::load::{Load, LoadMeter};

/// The state of a daemon at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) at: Instant,
    pub(super) boxes: Vec<BoxResponse>,
    pub(super) metrics: RuntimeMetricsResponse,
    /// `None` if the daemon cannot count its zombies.
    pub(super) zombies: Option<u64>,
    /// What the boxes on the screen use, by id.
    pub(super) loads: HashMap<String, Load>,
    pub(super) details: Option<Details>,
}

impl Snapshot {
    /// Requests a snapshot from the daemon.
    pub(super) async fn request(client: &Client) -> Result<Self, ClientError> {
        Ok(Self {
            boxes: client.all_boxes().await?,
            metrics: client.metrics().await?,
            zombies: parse_zombies(&client.exposition().await?),
            loads: HashMap::new(),
            details: None,
            at: Instant::now(),
        })
    }

    /// Requests a snapshot with what the screen shows of single boxes.
    async fn request_for(
        client: &Client,
        shown: &Shown,
        meter: &mut LoadMeter,
    ) -> Result<Self, ClientError> {
        let mut snapshot = Self::request(client).await?;
        snapshot.loads = meter.measure(client, &shown.running).await;
        if let Some(id) = &shown.details {
            // The box may have been removed.
            snapshot.details = Details::request(client, id).await.ok();
        }
        Ok(snapshot)
    }
}

/// The boxes of which the screen shows more than the list has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// The ids of the visible boxes that run.
    pub(super) running: Vec<String>,
    /// The id of the box whose details are shown.
    pub(super) details: Option<String>,
}

/// Returns the number of zombies, which only the OpenMetrics text has.
fn parse_zombies(exposition: &str) -> Option<u64> {
    let mut lines = exposition.lines();
    lines.find_map(|line| line.strip_prefix("vmm_shim_zombies ")?.trim().parse().ok())
}

/// A task that requests snapshots, so that a slow daemon does not block the screen.
#[derive(Debug)]
pub(super) struct Poller {
    snapshots: mpsc::Receiver<Result<Snapshot, ClientError>>,
    shown: watch::Sender<Shown>,
    _task: AbortOnDropHandle<()>,
}

impl Poller {
    /// Spawns a task that requests a snapshot after each delay, and when other details are to be shown.
    /// A request that times out is
    /// repeated.
    pub(super) fn spawn(client: Client, delay: Duration, request_timeout: Duration) -> Self {
        let (sender, snapshots) = mpsc::channel(1);
        let (shown, mut watched) = watch::channel(Shown::default());
        let poll = async move {
            let mut meter = LoadMeter::default();
            loop {
                let details = watched.borrow_and_update().details.clone();
                tokio::select! {
                    () = sleep(delay) => {}
                    // Ends when the poller is dropped.
                    _ = watched.wait_for(|shown| shown.details != details) => {}
                }
                let shown = watched.borrow_and_update().clone();
                let request = Snapshot::request_for(&client, &shown, &mut meter);
                // After a timeout nothing is sent: the view shows the age of its snapshot.
                if let Ok(snapshot) = timeout(request_timeout, request).await
                    && sender.send(snapshot).await.is_err()
                {
                    return;
                }
            }
        };
        Self {
            snapshots,
            shown,
            _task: AbortOnDropHandle::new(tokio::spawn(poll)),
        }
    }

    /// Sets what the next snapshots contain of single boxes.
    pub(super) fn show(&self, shown: Shown) {
        self.shown.send_if_modified(|current| {
            let is_changed = *current != shown;
            *current = shown;
            is_changed
        });
    }

    /// Waits for the next snapshot. Returns `None` if the task has ended.
    pub(super) async fn next(&mut self) -> Option<Result<Snapshot, ClientError>> {
        self.snapshots.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_are_parsed_from_openmetrics_text() {
        let text = "# TYPE vmm_shim_zombies gauge\nvmm_shim_zombies 3\n# EOF\n";
        assert_eq!(parse_zombies(text), Some(3));
        assert_eq!(parse_zombies("# EOF\n"), None);
    }
}
