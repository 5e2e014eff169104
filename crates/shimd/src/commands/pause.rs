use std::process::ExitCode;

use clap::Args;

use super::for_each_box::for_each_box;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Pause boxes: freeze all their processes
///
/// A paused box can be stopped and removed. `shimd unpause` lets it continue. Needs control groups of
/// version 2, except for guests.
#[derive(Args, Debug)]
pub(crate) struct Pause {
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Let paused boxes continue
#[derive(Args, Debug)]
pub(crate) struct Unpause {
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Pause {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        for_each_box(&self.boxes, async |name| client.pause(name).await.map(drop)).await
    }
}

impl Unpause {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        for_each_box(&self.boxes, async |name| {
            client.resume(name).await.map(drop)
        })
        .await
    }
}
