use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Debug, Write};
use std::io;
use std::panic::{self, PanicHookInfo};
use std::thread;

use anstyle::Style;
use clap::ValueEnum;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{self, Writer};

use crate::failure::Failure;
use crate::output::{is_active, wants_colours};

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text, for a terminal
    #[default]
    Human,
    /// JSON, one object per line
    Json,
}

impl LogFormat {
    /// Starts to log to stderr, including panics.
    pub(super) fn init(self) -> Result<(), Failure> {
        let filter = EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .from_env()?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            // It would print them to stderr as well, and panic if stderr is closed.
            .log_internal_errors(false);
        match self {
            Self::Human => log
                .fmt_fields(fields_on_one_line())
                .with_ansi(wants_colours(&io::stderr()))
                .with_target(false)
                .init(),
            Self::Json => log.json().flatten_event(true).init(),
        }
        panic::set_hook(Box::new(log_panic));
        Ok(())
    }
}

/// Returns the default format of fields, with all characters escaped that begin a new line or act on
/// a terminal: messages and fields contain untrusted names and errors.
fn fields_on_one_line() -> impl for<'w> FormatFields<'w> {
    const NAME: Style = Style::new().italic();
    const EQUALS: Style = Style::new().dimmed();
    let field = |to: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        match field.name() {
            "message" => {}
            name if to.has_ansi_escapes() => {
                write!(to, "{NAME}{name}{NAME:#}{EQUALS}={EQUALS:#}")?;
            }
            name => write!(to, "{name}=")?,
        }
        write!(Escaped(to), "{value:?}")
    };
    format::debug_fn(field).delimited(" ")
}

/// A writer that escapes the characters which would act on a terminal.
struct Escaped<'t, 'w>(&'t mut Writer<'w>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| {
            if is_active(character) {
                write!(self.0, "{}", character.escape_default())
            } else {
                self.0.write_char(character)
            }
        })
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        thread = thread::current().name(),
        place = panic.location().map(tracing::field::display),
        backtrace = is_captured.then(|| tracing::field::display(&backtrace)),
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
    fn panic_is_logged_in_the_format_of_the_log() {
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

    fn logged(with_ansi: bool, log_something: impl FnOnce()) -> String {
        let (mut reader, writer): (PipeReader, _) = io::pipe().unwrap();
        let log = tracing_subscriber::fmt()
            .fmt_fields(fields_on_one_line())
            .with_ansi(with_ansi)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.try_clone().unwrap())
            .finish();
        tracing::subscriber::with_default(log, log_something);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn fields_and_messages_cannot_forge_a_line_or_act_on_a_terminal() {
        let forged = "a\n2026-01-01T00:00:00Z ERROR forged \u{1b}[2J\r\u{9b}1A\u{202e}";
        let line = logged(false, || {
            let path = std::path::Path::new(forged).display();
            let error = io::Error::other(forged);
            tracing::info!(%path, %error, error_as_debug = ?error, text = forged, "in {forged}");
        });
        let (line, rest) = line.split_once('\n').unwrap();
        assert_eq!(rest, "");
        assert!(!line.contains(is_active), "{line:?}");
        let escaped = r"a\n2026-01-01T00:00:00Z ERROR forged \u{1b}[2J\r\u{9b}1A\u{202e}";
        assert!(
            line.contains(&format!(" in {escaped} path={escaped} error={escaped} ")),
            "{line}"
        );
    }

    #[test]
    fn harmless_text_is_logged_unchanged() {
        let text = || tracing::warn!(id = "b1", path = %"/tmp/名前", pid = 7, "not \"removed\"");
        let expected = " WARN not \"removed\" id=\"b1\" path=/tmp/名前 pid=7\n";
        assert_eq!(logged(false, text), expected);
        assert!(logged(true, text).contains("\u{1b}[3mid\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"b1\""));
    }
}
