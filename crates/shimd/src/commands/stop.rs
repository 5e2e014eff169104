use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use vmm_rest::wire::StopBoxRequest;

use super::{each, seconds};
use crate::failure::Failure;
use crate::home::Home;
use crate::server::Server;

/// Stop boxes: ask them to end, and kill those that have not in time
#[derive(Args, Debug)]
pub(crate) struct Stop {
    /// Seconds until a box is killed [default: 30]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    time: Option<Duration>,
    /// Ids or names
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: Server,
}

impl Stop {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut request = StopBoxRequest::default();
        request.timeout_seconds = self.time.map(|time| time.as_secs_f64());
        each(&self.boxes, async |name| {
            client.stop(name, &request).await.map(|_| ())
        })
        .await
    }
}
