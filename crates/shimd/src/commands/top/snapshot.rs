use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use vmm_rest::wire::{BoxResponse, RuntimeMetricsResponse};
use vmm_rest::{Client, ClientError};

/// The state of a daemon at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) at: Instant,
    pub(super) boxes: Vec<BoxResponse>,
    pub(super) metrics: RuntimeMetricsResponse,
    /// `None` if the daemon cannot count its zombies.
    pub(super) zombies: Option<u64>,
}

impl Snapshot {
    /// Requests a snapshot from the daemon.
    pub(super) async fn request(client: &Client) -> Result<Self, ClientError> {
        Ok(Self {
            boxes: client.all_boxes().await?,
            metrics: client.metrics().await?,
            zombies: parse_zombies(&client.exposition().await?),
            at: Instant::now(),
        })
    }
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
    _task: AbortOnDropHandle<()>,
}

impl Poller {
    /// Spawns a task that requests a snapshot after each delay. A request that times out is
    /// repeated.
    pub(super) fn spawn(client: Client, delay: Duration, request_timeout: Duration) -> Self {
        let (sender, snapshots) = mpsc::channel(1);
        let poll = async move {
            loop {
                sleep(delay).await;
                // After a timeout nothing is sent: the view shows the age of its snapshot.
                if let Ok(snapshot) = timeout(request_timeout, Snapshot::request(&client)).await
                    && sender.send(snapshot).await.is_err()
                {
                    return;
                }
            }
        };
        Self {
            snapshots,
            _task: AbortOnDropHandle::new(tokio::spawn(poll)),
        }
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
