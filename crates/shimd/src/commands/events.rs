use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use vmm_rest::ClientError;
use vmm_rest::wire::BoxEvent;

use crate::cli::complain;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Format, plain, print, print_line_of_json};
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
    let id = plain(&state.box_id);
    let name = plain(state.name.as_deref().unwrap_or("-"));
    let remark = match (state.pid, state.exit_code) {
        (Some(pid), _) => format!("  pid {pid}"),
        (None, Some(code)) => format!("  code {code}"),
        (None, None) => String::new(),
    };
    format!("{at:.3}  {:<8}  {id}  {name}{remark}\n", change.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_whatever_the_box_is_called() {
        let event = serde_json::json!({
            "change": "created", "at": "2026-01-02T03:04:05Z",
            "box": {
                "box_id": "b\u{9b}1", "name": "\u{202e}a\n\u{1b}b", "status": "configured",
                "image": "idle", "cpus": 1, "memory_mib": 512,
                "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
            },
        });
        assert_eq!(
            line(&serde_json::from_value(event).unwrap()),
            "2026-01-02T03:04:05.000Z  created   b\u{fffd}1  \u{fffd}a\u{fffd}\u{fffd}b\n"
        );
    }
}
