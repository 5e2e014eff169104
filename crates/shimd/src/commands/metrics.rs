use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Table, print, print_json};
use crate::server::Server;

/// Print the numbers of the daemon, or of a box
#[derive(Args, Debug)]
pub(crate) struct Metrics {
    /// For whom to print
    #[arg(long, value_enum, default_value_t)]
    format: MetricsFormat,
    /// The id or name of a box, in place of the daemon
    #[arg(value_name = "BOX")]
    of: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum MetricsFormat {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For Prometheus; of the daemon only
    Openmetrics,
}

impl Metrics {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let numbers = match (&self.of, self.format) {
            (Some(_), MetricsFormat::Openmetrics) => return Err(Failure::OfDaemonOnly),
            (None, MetricsFormat::Openmetrics) => {
                print(client.exposition().await?)?;
                return Ok(ExitCode::SUCCESS);
            }
            (Some(name), _) => fields(&client.box_metrics(name).await?)?,
            (None, _) => fields(&client.metrics().await?)?,
        };
        match self.format {
            MetricsFormat::Json => print_json(&numbers)?,
            _ => print(table(numbers))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn fields(numbers: &impl Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(numbers) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(Failure::Output(error.into())),
    }
}

fn table(numbers: Map<String, Value>) -> Table<2> {
    let mut table = Table::new(["NAME", "VALUE"]);
    for (name, value) in numbers {
        let value = Some(value).filter(|value| !value.is_null());
        table.row([name.into(), Cell::or_dash(value)]);
    }
    table
}
