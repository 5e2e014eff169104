mod column;
mod ends;
mod glance;
mod screen;
mod tone;
mod view;
mod watch;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use self::column::Column;
use self::ends::Ends;
use self::glance::Glance;
use self::screen::Screen;
use self::tone::Tone;
use self::view::View;
use self::watch::Watch;
use super::seconds;
use crate::failure::Failure;
use crate::home::Home;
use crate::server::Server;

/// Watch boxes, their states, and the health of the daemon's reaper; q quits
#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = delay)]
    delay: Duration,
    #[command(flatten)]
    server: Server,
}

/// How long the daemon may take to answer for the first time.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take from then on, unless the looks are far between.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

impl Top {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
            return Err(Failure::NoTerminal);
        }
        // Before the screen is taken: a daemon that is not there is told as by any other command.
        let name = self.server.name(&home);
        let first = match timeout(FIRST_PATIENCE, Glance::take(&client)).await {
            Ok(first) => first?,
            Err(_) => return Err(Failure::Silent { at: name }),
        };
        let patience = LEAST_PATIENCE.max(self.delay * 3);
        let watch = Watch::start(client, self.delay, patience);
        Screen::open(View::new(name, first, patience))?
            .run(watch)
            .await?;
        Ok(ExitCode::SUCCESS)
    }
}

const LEAST_DELAY: Duration = Duration::from_millis(100);
const MOST_DELAY: Duration = Duration::from_secs(3600);

fn delay(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        delay if (LEAST_DELAY..=MOST_DELAY).contains(&delay) => Ok(delay),
        _ => Err("from 0.1 to 3600".to_owned()),
    }
}
