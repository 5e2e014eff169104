use std::process::ExitCode;

use clap::Args;

use super::for_each_box::for_each_box;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Remove boxes with their files
#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// Kill boxes that are running
    #[arg(short, long)]
    force: bool,
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Remove {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        for_each_box(&self.boxes, async |name| {
            client.remove(name, self.force).await
        })
        .await
    }
}
