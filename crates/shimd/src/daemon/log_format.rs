use std::io;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::failure::Failure;
use crate::output::wants_colours;

/// How to log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Human,
    /// For programs, an object a line
    Json,
}

impl LogFormat {
    /// To stderr, from now on.
    pub(super) fn start(self) -> Result<(), Failure> {
        let filter = EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .from_env()?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            // It would tell of them on stderr as well, and panic when nobody reads that any more.
            .log_internal_errors(false);
        match self {
            Self::Human => log
                .with_ansi(wants_colours(&io::stderr()))
                .with_target(false)
                .init(),
            Self::Json => log.json().flatten_event(true).init(),
        }
        Ok(())
    }
}
