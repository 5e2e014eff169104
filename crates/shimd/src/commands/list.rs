use std::process::ExitCode;

use clap::Args;
use vmm_rest::wire::{BoxResponse, BoxStatus};

use super::filter::Filter;
use super::stage::Stage;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Format, Table, format_age, plain, print, print_json};
use crate::server_args::ServerArgs;

/// List the boxes that are running or starting
#[derive(Args, Debug)]
pub(crate) struct List {
    /// List all boxes
    #[arg(short, long)]
    all: bool,
    /// List the boxes with this status: configured, starting, running, stopping, stopped or failed
    #[arg(long, conflicts_with = "all")]
    status: Option<Stage>,
    /// List the boxes that match name=TEXT, image=NAME, status=STATUS, label=KEY or
    /// label=KEY=VALUE; all conditions if repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Print only the ids
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    server: ServerArgs,
}

impl List {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let mut boxes = self.server.client(&home).await?.all_boxes().await?;
        let has_status = self.filter.iter().any(|it| matches!(it, Filter::Status(_)));
        boxes.retain(|bx| match self.status {
            Some(stage) => stage.is_of(bx),
            None if has_status => true,
            None => self.all || bx.is_alive() || bx.restarting,
        });
        boxes.retain(|bx| self.filter.iter().all(|filter| filter.is_match(bx)));
        if self.quiet {
            let ids = boxes.iter().map(|bx| format!("{}\n", plain(&bx.box_id)));
            print(ids.collect::<String>())?;
        } else {
            match self.format {
                Format::Table => print(table(&boxes))?,
                Format::Json => print_json(&boxes)?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(boxes: &[BoxResponse]) -> Table<6> {
    let mut table = Table::new(["BOX ID", "NAME", "IMAGE", "STATUS", "PID", "CREATED"]);
    for bx in boxes {
        table.add_row([
            bx.box_id.clone().into(),
            Cell::or_dash(bx.name.as_ref()),
            bx.image.clone().into(),
            status_cell(bx),
            Cell::or_dash(bx.pid),
            format!("{} ago", format_age(bx.created_at)).into(),
        ]);
    }
    table
}

/// Returns the status, with the health of a running box or the exit code of another.
fn status_cell(bx: &BoxResponse) -> Cell {
    let health = bx.health.and_then(|health| {
        let word = serde_json::to_value(health).ok()?;
        word.as_str().map(str::to_owned)
    });
    let code = bx.exit_code.map(|code| code.to_string());
    let detail = match bx.status {
        BoxStatus::Running => health,
        _ => code,
    };
    let mut text = match detail {
        Some(detail) => format!("{} ({detail})", bx.stage()),
        None => bx.stage().to_owned(),
    };
    if bx.restarting {
        text.push_str(", restarting");
    }
    Cell::with_status(text, bx.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_in_progress_is_shown_and_selected_as_starting() {
        let bx = serde_json::json!({
            "box_id": "b1", "status": "configured", "starting": true, "pid": 7, "image": "idle",
            "cpus": 1, "memory_mib": 512,
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
        });
        let bx: BoxResponse = serde_json::from_value(bx).unwrap();
        assert!(
            table(std::slice::from_ref(&bx))
                .to_string()
                .contains("starting   7")
        );
        for (stage, expected) in [("starting", true), ("configured", false)] {
            assert_eq!(stage.parse::<Stage>().unwrap().is_of(&bx), expected);
        }
    }
}
