use anstyle::{AnsiColor, Style};
use vmm_rest::wire::BoxStatus;

use super::plain;

/// One value of a table.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
}

impl Cell {
    /// A value, or a dash in its place.
    pub(crate) fn or_dash(value: Option<impl ToString>) -> Self {
        value.map_or_else(|| "-".into(), |value| value.to_string().into())
    }

    /// A status, in its colour.
    pub(crate) fn of_status(text: String, status: BoxStatus) -> Self {
        let style = match status {
            BoxStatus::Running => AnsiColor::Green.on_default(),
            BoxStatus::Failed => AnsiColor::Red.on_default(),
            _ => Style::new(),
        };
        Self {
            style,
            ..text.into()
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self {
            text: plain(text),
            style: Style::new(),
        }
    }
}
