use std::process::ExitCode;

use clap::Args;
use vmm_rest::wire::{BoxResponse, BoxStatus};

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Format, Table, age_of, plain, print, print_json};
use crate::server::Server;

/// List boxes: those that run, unless said otherwise
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only those with this status: configured, running, stopping, stopped or failed
    #[arg(long, conflicts_with = "all")]
    status: Option<BoxStatus>,
    /// Only their ids
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// For whom to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    server: Server,
}

impl List {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let mut boxes = self.server.client(&home).await?.all_boxes().await?;
        boxes.retain(|listed| match self.status {
            Some(wanted) => listed.status == wanted,
            None => self.all || listed.status.is_alive(),
        });
        if self.quiet {
            let ids = boxes
                .iter()
                .map(|listed| format!("{}\n", plain(&listed.box_id)));
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
    for listed in boxes {
        table.row([
            listed.box_id.clone().into(),
            Cell::or_dash(listed.name.as_ref()),
            listed.image.clone().into(),
            status(listed),
            Cell::or_dash(listed.pid),
            format!("{} ago", age_of(listed.created_at)).into(),
        ]);
    }
    table
}

/// With what there is to say about it in a word.
fn status(listed: &BoxResponse) -> Cell {
    let health = listed.health.and_then(|health| {
        let word = serde_json::to_value(health).ok()?;
        word.as_str().map(str::to_owned)
    });
    let code = listed.exit_code.map(|code| code.to_string());
    let remark = match listed.status {
        BoxStatus::Running => health,
        _ => code,
    };
    let text = match remark {
        Some(remark) => format!("{} ({remark})", listed.status),
        None => listed.status.to_string(),
    };
    Cell::of_status(text, listed.status)
}
