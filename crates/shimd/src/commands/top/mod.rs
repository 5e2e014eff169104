mod column;
mod details;
mod load;
mod screen;
mod snapshot;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use self::screen::Screen;
use self::snapshot::{Poller, Snapshot};
use self::view::View;
use super::seconds::parse_seconds;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Show boxes and the health of the reaper, updated live; q quits
///
/// The arrows select a box; Enter shows its executions and the end of its output. CPU is that of the
/// processes of the box since the last update, 100 for one processor; MEM is their memory.
#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Seconds between two updates
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_delay)]
    delay: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

/// How long the first snapshot may take.
const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The lower bound of the timeout of later snapshots, which is three delays.
const MIN_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

impl Top {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        for (stream, is_terminal) in [
            ("stdin", io::stdin().is_terminal()),
            ("stdout", io::stdout().is_terminal()),
        ] {
            if !is_terminal {
                return Err(Failure::NotATerminal { stream });
            }
        }
        // Before the screen opens, so that a failure is printed as by any other command.
        let address = self.server.address(&home);
        let first = match timeout(FIRST_SNAPSHOT_TIMEOUT, Snapshot::request(&client)).await {
            Ok(first) => first?,
            Err(_) => return Err(Failure::NoResponse { at: address }),
        };
        let timeout = MIN_SNAPSHOT_TIMEOUT.max(self.delay * 3);
        let poller = Poller::spawn(client, self.delay, timeout);
        Screen::open(View::new(address, first, timeout))?
            .run(poller)
            .await?;
        Ok(ExitCode::SUCCESS)
    }
}

const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(3600);

fn parse_delay(text: &str) -> Result<Duration, String> {
    match parse_seconds(text)? {
        delay if (MIN_DELAY..=MAX_DELAY).contains(&delay) => Ok(delay),
        _ => Err("must be from 0.1 to 3600".to_owned()),
    }
}
