use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Table, print, print_json};
use crate::server_args::ServerArgs;

/// Print the metrics of the daemon, or of a box
#[derive(Args, Debug)]
pub(crate) struct Metrics {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: MetricsFormat,
    /// Id or name of a box [default: the daemon]
    #[arg(value_name = "BOX")]
    bx: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum MetricsFormat {
    /// Aligned columns
    #[default]
    Table,
    /// JSON, for programs
    Json,
    /// OpenMetrics text, for Prometheus; only for the daemon
    Openmetrics,
}

impl Metrics {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let metrics = match (&self.bx, self.format) {
            (Some(_), MetricsFormat::Openmetrics) => return Err(Failure::DaemonOnlyFormat),
            (None, MetricsFormat::Openmetrics) => {
                print(client.exposition().await?)?;
                return Ok(ExitCode::SUCCESS);
            }
            (Some(name), _) => fields(&client.box_metrics(name).await?)?,
            (None, _) => fields(&client.metrics().await?)?,
        };
        match self.format {
            MetricsFormat::Json => print_json(&metrics)?,
            _ => print(table(metrics))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn fields(metrics: &impl Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(metrics) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(Failure::Output(error.into())),
    }
}

fn table(metrics: Map<String, Value>) -> Table<2> {
    let mut table = Table::new(["NAME", "VALUE"]);
    for (name, value) in metrics {
        let value = Some(value).filter(|value| !value.is_null());
        table.add_row([name.into(), Cell::or_dash(value)]);
    }
    table
}
