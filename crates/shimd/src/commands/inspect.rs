use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use vmm_rest::wire::BoxResponse;

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Format, Table, print, print_error, print_json};
use crate::server_args::ServerArgs;

/// Show all fields of boxes
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Inspect {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut responses = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for name in &self.boxes {
            match client.inspect(name).await {
                Ok(bx) => responses.push(bx),
                Err(error) => {
                    print_error(Failure::from(error).with_causes());
                    code = ExitCode::FAILURE;
                }
            }
        }
        match self.format {
            Format::Json => print_json(&responses)?,
            Format::Table => {
                for bx in &responses {
                    print(table(bx)?)?;
                }
            }
        }
        Ok(code)
    }
}

/// The fields at the top of the table; the others follow in their own order.
const FIRST_FIELDS: [&str; 6] = ["box_id", "name", "image", "status", "pid", "payload_pid"];

fn table(bx: &BoxResponse) -> Result<Table<2>, Failure> {
    let mut table = Table::new(["FIELD", "VALUE"]);
    let output_error = |error: serde_json::Error| Failure::Output(error.into());
    let Value::Object(mut fields) = serde_json::to_value(bx).map_err(output_error)? else {
        return Ok(table);
    };
    let first = FIRST_FIELDS.map(|name| (name.to_owned(), fields.remove(name).unwrap_or_default()));
    for (name, value) in first.into_iter().chain(fields) {
        let value = match value {
            Value::Null => Cell::or_dash(None::<String>),
            Value::String(text) if !text.contains('\n') => text.into(),
            // Several lines are shown as JSON, on one line.
            other => other.to_string().into(),
        };
        table.add_row([name.into(), value]);
    }
    Ok(table)
}
