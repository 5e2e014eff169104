use std::process::ExitCode;

use clap::Args;

use super::box_args::BoxArgs;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{plain, print};
use crate::server_args::ServerArgs;

/// Create a box without starting it, and print its id
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Remove the box when it has ended
    #[arg(long, conflicts_with = "restart")]
    rm: bool,
    #[command(flatten)]
    bx: BoxArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Create {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let bx = client
            .create(&self.bx.into_request().auto_remove(self.rm))
            .await?;
        print(format_args!("{}\n", plain(&bx.box_id)))?;
        Ok(ExitCode::SUCCESS)
    }
}
