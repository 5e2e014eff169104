use std::process::ExitCode;

use clap::Args;

use super::NewBox;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{plain, print};
use crate::server::Server;

/// Make a box, without starting it, and print its id
#[derive(Args, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    new_box: NewBox,
    #[command(flatten)]
    server: Server,
}

impl Create {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let made = client.create(&self.new_box.request()).await?;
        print(format_args!("{}\n", plain(&made.box_id)))?;
        Ok(ExitCode::SUCCESS)
    }
}
