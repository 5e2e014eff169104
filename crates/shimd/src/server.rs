use std::env;
use std::path::{Path, PathBuf};

use clap::Args;
use vmm_rest::{BearerToken, Client};

use crate::failure::Failure;
use crate::home::Home;

const TOKEN_VARIABLE: &str = "SHIMD_TOKEN";

/// The daemon that a command is for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Which daemon")]
pub(crate) struct Server {
    /// A daemon that listens on TCP, http://HOST:PORT, in place of the one at the socket in --home
    #[arg(long, value_name = "URL", env = "SHIMD_URL", hide_env_values = true)]
    url: Option<String>,
    /// Its token, which it may also have from SHIMD_TOKEN
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
}

impl Server {
    pub(crate) fn client(&self, home: &Home) -> Result<Client, Failure> {
        Ok(match &self.url {
            Some(url) => Client::tcp(url, token(self.token_file.as_deref())?)?,
            None => Client::unix(&home.socket())?,
        })
    }

    /// Whether its files can be reached, too.
    pub(crate) fn is_local(&self) -> bool {
        self.url.is_none()
    }

    /// For people.
    pub(crate) fn name(&self, home: &Home) -> String {
        self.url
            .clone()
            .unwrap_or_else(|| home.socket().display().to_string())
    }
}

/// From a file or the environment; arguments can be seen by every user of the host.
pub(crate) fn token(file: Option<&Path>) -> Result<Option<BearerToken>, Failure> {
    if let Some(path) = file {
        return Ok(Some(BearerToken::read(path)?));
    }
    match env::var(TOKEN_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            let token = BearerToken::new(&text).map_err(Failure::TokenVariable)?;
            Ok(Some(token))
        }
        _ => Ok(None),
    }
}
