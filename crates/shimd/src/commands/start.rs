use std::process::ExitCode;

use clap::Args;

use super::each;
use crate::failure::Failure;
use crate::home::Home;
use crate::server::Server;

/// Start boxes
#[derive(Args, Debug)]
pub(crate) struct Start {
    /// Ids or names
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: Server,
}

impl Start {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        each(&self.boxes, async |name| {
            client.start(name).await.map(|_| ())
        })
        .await
    }
}
