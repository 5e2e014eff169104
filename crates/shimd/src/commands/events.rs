use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use vmm_rest::ClientError;
use vmm_rest::wire::BoxEvent;

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Format, plain, print, print_error, print_json_line};
use crate::server_args::ServerArgs;

/// Print the events of all boxes until the daemon ends
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Output format; JSON has one object per line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    server: ServerArgs,
}

impl Events {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let mut events = self.server.client(&home).await?.events().await?;
        while let Some(event) = events.next().await {
            match (event, self.format) {
                (Ok(event), Format::Table) => print(format_event(&event))?,
                (Ok(event), Format::Json) => print_json_line(&event)?,
                (Err(missed @ ClientError::EventsMissed { .. }), _) => print_error(missed),
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Formats an event as one line, whatever the name of the box contains.
fn format_event(event: &BoxEvent) -> String {
    let BoxEvent {
        change, at, state, ..
    } = event;
    let id = plain(&state.box_id);
    let name = plain(state.name.as_deref().unwrap_or("-"));
    let detail = match (state.pid, state.exit_code) {
        (Some(pid), _) => format!("  pid {pid}"),
        (None, Some(code)) => format!("  code {code}"),
        (None, None) => String::new(),
    };
    let restarts = match state.restarts {
        0 => String::new(),
        count if state.restarting => format!("  restart {count} due"),
        count => format!("  restart {count}"),
    };
    format!(
        "{at:.3}  {:<8}  {id}  {name}{detail}{restarts}\n",
        change.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line_for_any_box_name() {
        let event = serde_json::json!({
            "change": "created", "at": "2026-01-02T03:04:05Z",
            "box": {
                "box_id": "b\u{9b}1", "name": "\u{202e}a\n\u{1b}b", "status": "configured",
                "image": "idle", "cpus": 1, "memory_mib": 512,
                "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
            },
        });
        assert_eq!(
            format_event(&serde_json::from_value(event).unwrap()),
            "2026-01-02T03:04:05.000Z  created   b\u{fffd}1  \u{fffd}a\u{fffd}\u{fffd}b\n"
        );
    }
}
