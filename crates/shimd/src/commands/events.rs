use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use vmm_rest::ClientError;
use vmm_rest::wire::BoxEvent;

use crate::cli::complain;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Format, print, print_line_of_json};
use crate::server::Server;

/// Follow what happens to boxes, from now on until the daemon ends
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// For whom to print; JSON is an object a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    server: Server,
}

impl Events {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let mut events = self.server.client(&home).await?.events().await?;
        while let Some(event) = events.next().await {
            match (event, self.format) {
                (Ok(event), Format::Table) => print(line(&event))?,
                (Ok(event), Format::Json) => print_line_of_json(&event)?,
                (Err(missed @ ClientError::EventsMissed { .. }), _) => complain(missed),
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(event: &BoxEvent) -> String {
    let BoxEvent {
        change, at, state, ..
    } = event;
    let name = state.name.as_deref().unwrap_or("-");
    let remark = match (state.pid, state.exit_code) {
        (Some(pid), _) => format!("  pid {pid}"),
        (None, Some(code)) => format!("  code {code}"),
        (None, None) => String::new(),
    };
    format!(
        "{at:.3}  {:<8}  {}  {name}{remark}\n",
        change.name(),
        state.box_id
    )
}
