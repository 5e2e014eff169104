use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use vmm_rest::{BearerToken, Client};

use crate::failure::Failure;
use crate::home::Home;

pub(crate) const TOKEN_VARIABLE: &str = "SHIMD_TOKEN";

/// How long a client waits for the socket of a daemon that is starting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The arguments that select the daemon which a command talks to.
#[derive(Args, Debug)]
#[command(next_help_heading = "Daemon")]
pub(crate) struct ServerArgs {
    /// Connect to the daemon over TCP, at http://HOST:PORT [default: the socket in --home, for
    /// which a command waits up to a second]
    #[arg(long, value_name = "URL", env = "SHIMD_URL", hide_env_values = true)]
    url: Option<String>,
    /// Read the token of the daemon from this file [default: the variable SHIMD_TOKEN]
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
}

impl ServerArgs {
    /// Returns a client of the selected daemon.
    pub(crate) async fn client(&self, home: &Home) -> Result<Client, Failure> {
        Ok(match self.url(home) {
            Some(url) => Client::tcp(url, read_token(self.token_file.as_deref())?)?,
            None => {
                let socket = home.socket();
                wait_for_listener(&socket).await;
                Client::unix(&socket)?
            }
        })
    }

    /// Returns true if the daemon is reached through its home, so that the files of its boxes are
    /// on this machine.
    pub(crate) fn is_local(&self, home: &Home) -> bool {
        self.url(home).is_none()
    }

    /// Returns the URL or the socket of the daemon, for messages.
    pub(crate) fn address(&self, home: &Home) -> String {
        match self.url(home) {
            Some(url) => url.to_owned(),
            None => home.socket().display().to_string(),
        }
    }

    fn url(&self, home: &Home) -> Option<&str> {
        self.url.as_deref().filter(|_| !home.overrides_url())
    }
}

/// Waits until a process listens at `socket`, for at most [`CONNECT_TIMEOUT`].
async fn wait_for_listener(socket: &Path) {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    while let Err(error) = UnixStream::connect(socket).await
        && matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        )
        && Instant::now() < deadline
    {
        sleep(CONNECT_TIMEOUT / 50).await;
    }
}

/// Reads the token from a file or from the environment. It is never an argument: every user of the
/// host can read the arguments of a process.
pub(crate) fn read_token(file: Option<&Path>) -> Result<Option<BearerToken>, Failure> {
    if let Some(path) = file {
        return Ok(Some(BearerToken::read(path)?));
    }
    let Some(text) = env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // The replacement characters for invalid UTF-8 are not allowed in a token either.
    let token = BearerToken::new(&text.to_string_lossy()).map_err(Failure::TokenVariable)?;
    Ok(Some(token))
}
