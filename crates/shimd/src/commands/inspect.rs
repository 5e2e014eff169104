use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use vmm_rest::wire::BoxResponse;

use crate::cli::complain;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Format, Table, print, print_json};
use crate::server::Server;

/// Tell all there is to know about boxes
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// For whom to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Ids or names
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: Server,
}

impl Inspect {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut found = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for name in &self.boxes {
            match client.inspect(name).await {
                Ok(inspected) => found.push(inspected),
                Err(error) => {
                    complain(Failure::from(error));
                    code = ExitCode::FAILURE;
                }
            }
        }
        match self.format {
            Format::Json => print_json(&found)?,
            Format::Table => {
                for inspected in &found {
                    print(table(inspected)?)?;
                }
            }
        }
        Ok(code)
    }
}

/// The fields that tell who it is and how it is first, then the others.
const FIRST: [&str; 6] = ["box_id", "name", "image", "status", "pid", "payload_pid"];

fn table(inspected: &BoxResponse) -> Result<Table<2>, Failure> {
    let mut table = Table::new(["FIELD", "VALUE"]);
    let failed = |error: serde_json::Error| Failure::Output(error.into());
    let Value::Object(mut fields) = serde_json::to_value(inspected).map_err(failed)? else {
        return Ok(table);
    };
    let first = FIRST.map(|name| (name.to_owned(), fields.remove(name).unwrap_or_default()));
    for (name, value) in first.into_iter().chain(fields) {
        let value = match value {
            Value::Null => Cell::or_dash(None::<String>),
            Value::String(text) => text.into(),
            other => other.to_string().into(),
        };
        table.row([name.into(), value]);
    }
    Ok(table)
}
