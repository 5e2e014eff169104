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

/// A box that this command waits for.
struct Waited {
    bx: BoxResponse,
    /// Whether its end was seen, or the box was removed.
    is_over: bool,
}

impl Waited {
    /// Stores the current state, unless the end was seen before: the box may have been started again.
    fn update(&mut self, bx: BoxResponse) {
        if !self.is_over {
            self.is_over = !bx.is_alive();
            self.bx = bx;
        }
    }
}

impl Wait {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        // Before the states are read, so that no end is missed.
        let mut events = client.events().await?;
        let mut boxes = Vec::new();
        for name in &self.boxes {
            let bx = client.inspect(name).await.map_err(Failure::from);
            boxes.push(bx.map(|bx| Waited {
                is_over: !bx.is_alive(),
                bx,
            }));
        }
        let mut result = ExitCode::SUCCESS;
        for index in 0..boxes.len() {
            while let Some(Ok(waited)) = boxes.get(index)
                && !waited.is_over
            {
                let id = waited.bx.box_id.clone();
                let all = boxes.iter_mut().flatten();
                match events.next().await {
                    Some(Ok(event)) => all
                        .filter(|waited| waited.bx.box_id == event.state.box_id)
                        .for_each(|waited| waited.update(event.state.clone())),
                    Some(Err(ClientError::EventsMissed { .. })) => {
                        for waited in all {
                            update(&client, waited).await?;
                        }
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(Failure::DaemonEnded { id }),
                }
            }
            match &boxes[index] {
                Ok(Waited { bx, .. }) => match bx.exit_code {
                    Some(code) => print(format_args!("{code}\n"))?,
                    None => print("-\n")?,
                },
                Err(error) => {
                    print_error(error.with_causes());
                    result = ExitCode::FAILURE;
                }
            }
        }
        Ok(result)
    }
}

/// Reads the state of a box again.
async fn update(client: &Client, waited: &mut Waited) -> Result<(), Failure> {
    match client.inspect(&waited.bx.box_id).await {
        Err(error) if error.code() == Some(ErrorCode::NotFound) => waited.is_over = true,
        current => waited.update(current?),
    }
    Ok(())
}
