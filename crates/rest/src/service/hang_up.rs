use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Ends the connection that a request has come by, whatever is still to be sent.
#[derive(Clone, Debug)]
pub(crate) struct HangUp {
    /// Cancelled at the latest when the connection has ended.
    connection: CancellationToken,
}

impl HangUp {
    pub(crate) fn new(connection: CancellationToken) -> Self {
        Self { connection }
    }

    /// So long after the token is cancelled; returns when the connection has ended.
    pub(crate) async fn after(self, token: CancellationToken, grace: Duration) {
        let hang_up = async {
            token.cancelled().await;
            sleep(grace).await;
        };
        tokio::select! {
            () = self.connection.cancelled() => {}
            () = hang_up => self.connection.cancel(),
        }
    }
}
