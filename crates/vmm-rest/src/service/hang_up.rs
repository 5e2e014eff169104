use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Ends the connection that a request has come by, whatever is still to be sent.
#[derive(Clone, Debug)]
pub(crate) struct HangUp(CancellationToken);

impl HangUp {
    /// By cancelling the token.
    pub(crate) fn new(connection: CancellationToken) -> Self {
        Self(connection)
    }

    /// So long after the token is cancelled, unless the future is dropped before.
    pub(crate) async fn after(self, token: CancellationToken, grace: Duration) {
        token.cancelled().await;
        sleep(grace).await;
        self.0.cancel();
    }
}
