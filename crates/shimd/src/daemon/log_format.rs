use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::panic::{self, PanicHookInfo};
use std::thread;

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
        panic::set_hook(Box::new(log_panic));
        Ok(())
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        thread = thread::current().name(),
        place = panic.location().map(tracing::field::display),
        backtrace = captured.then(|| tracing::field::display(&backtrace)),
        "panicked: {}",
        panic.payload_as_str().unwrap_or_default()
    );
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_panic_is_logged_as_everything_else_is() {
        let (mut reader, writer): (PipeReader, _) = io::pipe().unwrap();
        let log = tracing_subscriber::fmt().json().flatten_event(true);
        let log = log
            .with_writer(move || writer.try_clone().unwrap())
            .finish();
        let before = panic::take_hook();
        panic::set_hook(Box::new(log_panic));
        let panicked = tracing::subscriber::with_default(log, || {
            panic::catch_unwind(|| panic!("for the {}", "test"))
        });
        panic::set_hook(before);
        assert!(panicked.is_err());
        let mut line = String::new();
        reader.read_to_string(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "panicked: for the test");
        assert_eq!(line["level"], "ERROR");
        assert!(line["place"].as_str().unwrap().contains("log_format.rs"));
    }
}
