use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use vmm_rest::wire::{BoxResponse, ErrorCode};
use vmm_rest::{Client, ClientError};

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{print, print_error};
use crate::server_args::ServerArgs;

/// Wait until boxes are not running, and print their exit codes
///
/// A box that its restart policy starts again is not running in between.
#[derive(Args, Debug)]
pub(crate) struct Wait {
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Wait {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut result = ExitCode::SUCCESS;
        for name in &self.boxes {
            match wait(&client, name).await {
                Ok(bx) => match bx.exit_code {
                    Some(code) => print(format_args!("{code}\n"))?,
                    None => print("-\n")?,
                },
                Err(failure) => {
                    print_error(failure.with_causes());
                    result = ExitCode::FAILURE;
                }
            }
        }
        Ok(result)
    }
}

async fn wait(client: &Client, name: &str) -> Result<BoxResponse, Failure> {
    // Before the state is read, so that no end is missed.
    let mut events = client.events().await?;
    let mut bx = client.inspect(name).await?;
    while bx.is_alive() {
        match events.next().await {
            Some(Ok(event)) if event.state.box_id == bx.box_id => bx = event.state,
            Some(Ok(_)) => {}
            Some(Err(ClientError::EventsMissed { .. })) => match client.inspect(&bx.box_id).await {
                Err(error) if error.code() == Some(ErrorCode::NotFound) => break,
                current => bx = current?,
            },
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Failure::DaemonEnded { id: bx.box_id }),
        }
    }
    Ok(bx)
}
