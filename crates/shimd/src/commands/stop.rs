use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use vmm_rest::wire::StopBoxRequest;

use super::for_each_box::for_each_box;
use super::seconds::parse_seconds;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Stop boxes: send SIGTERM, and SIGKILL after a grace period
#[derive(Args, Debug)]
pub(crate) struct Stop {
    /// Grace period in seconds [default: 30]
    #[arg(short, long, value_name = "SECONDS", value_parser = parse_seconds)]
    time: Option<Duration>,
    /// Ids or names of the boxes
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl Stop {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let mut request = StopBoxRequest::default();
        request.timeout_seconds = self.time.map(|time| time.as_secs_f64());
        for_each_box(&self.boxes, async |name| {
            client.stop(name, &request).await.map(|_| ())
        })
        .await
    }
}
