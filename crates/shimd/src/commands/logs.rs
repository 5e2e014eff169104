use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;

use crate::failure::Failure;
use crate::home::Home;
use crate::output::print_raw;
use crate::server_args::ServerArgs;

/// Print the output of a box that the daemon keeps: stdout and stderr of its last run
#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// Print new output until the box has ended
    #[arg(short, long)]
    follow: bool,
    /// Print only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,
    /// Id or name of the box
    #[arg(value_name = "BOX")]
    bx: String,
    #[command(flatten)]
    server: ServerArgs,
}

impl Logs {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut output = client.logs(&self.bx, self.follow, self.tail).await?;
        while let Some(chunk) = output.next().await {
            print_raw(&chunk?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
