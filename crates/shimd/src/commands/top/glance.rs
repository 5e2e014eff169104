use tokio::time::Instant;
use vmm_rest::wire::{BoxResponse, RuntimeMetricsResponse};
use vmm_rest::{Client, ClientError};

/// All that there is to see at one moment.
#[derive(Clone, Debug)]
pub(super) struct Glance {
    pub(super) at: Instant,
    pub(super) boxes: Vec<BoxResponse>,
    pub(super) metrics: RuntimeMetricsResponse,
    /// `None` where the daemon cannot tell.
    pub(super) zombies: Option<u64>,
}

impl Glance {
    pub(super) async fn take(client: &Client) -> Result<Self, ClientError> {
        Ok(Self {
            boxes: client.all_boxes().await?,
            metrics: client.metrics().await?,
            zombies: zombies(&client.exposition().await?),
            at: Instant::now(),
        })
    }
}

/// Only the text for Prometheus counts them.
fn zombies(exposition: &str) -> Option<u64> {
    let mut lines = exposition.lines();
    lines.find_map(|line| line.strip_prefix("vmm_shim_zombies ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_are_found_among_the_numbers() {
        let text = "# TYPE vmm_shim_zombies gauge\nvmm_shim_zombies 3\n# EOF\n";
        assert_eq!(zombies(text), Some(3));
        assert_eq!(zombies("# EOF\n"), None);
    }
}
