use std::process::ExitCode;

use clap::Args;

use super::each;
use crate::failure::Failure;
use crate::home::Home;
use crate::server::Server;

/// Remove boxes, their processes and their files
#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// Also those that run: they are killed
    #[arg(short, long)]
    force: bool,
    /// Ids or names
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: Server,
}

impl Remove {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        each(&self.boxes, async |name| {
            client.remove(name, self.force).await
        })
        .await
    }
}
