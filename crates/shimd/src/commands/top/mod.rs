mod glance;
mod screen;
mod view;
mod watch;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::glance::Glance;
use self::screen::Screen;
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

impl Top {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
            return Err(Failure::NoTerminal);
        }
        // Before the screen is taken: a daemon that is not there is told as by any other command.
        let first = Glance::take(&client).await?;
        let watch = Watch::start(client, self.delay);
        let view = View::new(self.server.name(&home), first);
        Screen::open(view)?.run(watch).await?;
        Ok(ExitCode::SUCCESS)
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        delay if delay >= Duration::from_millis(100) => Ok(delay),
        _ => Err("at least 0.1".to_owned()),
    }
}
