use std::process::ExitCode;

use clap::Args;
use vmm_rest::wire::ErrorCode;

use super::filter::Filter;
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
    /// Remove all boxes
    #[arg(short, long, conflicts_with = "boxes")]
    all: bool,
    /// Remove the boxes that match name=TEXT, image=NAME, status=STATUS, label=KEY or
    /// label=KEY=VALUE; all conditions if repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "boxes")]
    filter: Vec<Filter>,
    /// Ids or names of the boxes
    #[arg(required_unless_present_any = ["all", "filter"], value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Remove {
    pub(crate) async fn run(mut self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let is_listed = self.boxes.is_empty();
        if is_listed {
            let mut boxes = client.all_boxes().await?;
            boxes.retain(|bx| self.filter.iter().all(|filter| filter.is_match(bx)));
            self.boxes = boxes.into_iter().map(|bx| bx.box_id).collect();
        }
        for_each_box(&self.boxes, async |name| {
            match client.remove(name, self.force).await {
                // Another client, or the daemon itself, has removed it since it was listed.
                Err(error) if is_listed && error.code() == Some(ErrorCode::NotFound) => Ok(()),
                result => result,
            }
        })
        .await
    }
}
