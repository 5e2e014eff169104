use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use vmm_rest::{BearerToken, Client, TokenError};

use crate::failure::Failure;
use crate::home::Home;

pub(crate) const TOKEN_VARIABLE: &str = "SHIMD_TOKEN";

/// How long to wait for a daemon that has just been started.
const PATIENCE: Duration = Duration::from_secs(1);

/// The daemon that a command is for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Which daemon")]
pub(crate) struct Server {
    /// A daemon that listens on TCP, http://HOST:PORT, in place of the one at the socket in --home,
    /// which gets a second to come up
    #[arg(long, value_name = "URL", env = "SHIMD_URL", hide_env_values = true)]
    url: Option<String>,
    /// Its token, which it may also have from SHIMD_TOKEN
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
}

impl Server {
    pub(crate) async fn client(&self, home: &Home) -> Result<Client, Failure> {
        Ok(match self.url(home) {
            Some(url) => Client::tcp(url, token(self.token_file.as_deref())?)?,
            None => {
                let socket = home.socket();
                may_come_up(&socket).await;
                Client::unix(&socket)?
            }
        })
    }

    /// Whether its files can be reached, too.
    pub(crate) fn is_local(&self, home: &Home) -> bool {
        self.url(home).is_none()
    }

    /// For people.
    pub(crate) fn name(&self, home: &Home) -> String {
        match self.url(home) {
            Some(url) => url.to_owned(),
            None => home.socket().display().to_string(),
        }
    }

    fn url(&self, home: &Home) -> Option<&str> {
        self.url.as_deref().filter(|_| !home.beats_url())
    }
}

/// Waits until somebody listens there, for a moment only.
async fn may_come_up(socket: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = UnixStream::connect(socket).await
        && matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        )
        && Instant::now() < deadline
    {
        sleep(PATIENCE / 50).await;
    }
}

/// From a file or the environment; arguments can be seen by every user of the host.
pub(crate) fn token(file: Option<&Path>) -> Result<Option<BearerToken>, Failure> {
    if let Some(path) = file {
        return match BearerToken::read(path) {
            Ok(token) => Ok(Some(token)),
            Err(error @ TokenError::Read { .. }) => Err(error.into()),
            Err(error) => Err(Failure::TokenFile {
                path: path.to_owned(),
                source: error,
            }),
        };
    }
    let Some(text) = env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // What is no UTF-8 becomes what no token may hold.
    let token = BearerToken::new(&text.to_string_lossy()).map_err(Failure::TokenVariable)?;
    Ok(Some(token))
}
