use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use vmm_rest::{Client, ClientError};

use super::Glance;

/// Looks again and again, apart from the screen, which a daemon that is slow must not hold up.
#[derive(Debug)]
pub(super) struct Watch {
    glances: mpsc::Receiver<Result<Glance, ClientError>>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// What takes longer than `patience` is given up, and begun anew.
    pub(super) fn start(client: Client, delay: Duration, patience: Duration) -> Self {
        let (sender, glances) = mpsc::channel(1);
        let look = async move {
            loop {
                sleep(delay).await;
                // A daemon that does not answer says nothing, which is seen as well.
                if let Ok(glance) = timeout(patience, Glance::take(&client)).await
                    && sender.send(glance).await.is_err()
                {
                    return;
                }
            }
        };
        Self {
            glances,
            _task: AbortOnDropHandle::new(tokio::spawn(look)),
        }
    }

    /// `None` when there will be no more.
    pub(super) async fn next(&mut self) -> Option<Result<Glance, ClientError>> {
        self.glances.recv().await
    }
}
