use std::str::FromStr;

use vmm_rest::wire::{BoxResponse, UnknownStatus};

use super::stage::Stage;

/// A condition for boxes, in the form KEY=VALUE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Name(String),
    Image(String),
    Status(Stage),
    /// The key of a label, and its value if that matters.
    Label(String, Option<String>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidFilter {
    #[error("use name=TEXT, image=NAME, status=STATUS, label=KEY or label=KEY=VALUE")]
    Form,
    #[error(transparent)]
    Status(#[from] UnknownStatus),
}

impl Filter {
    pub(super) fn is_match(&self, bx: &BoxResponse) -> bool {
        match self {
            Self::Name(part) => bx.name.as_ref().is_some_and(|name| name.contains(part)),
            Self::Image(name) => bx.image == *name,
            Self::Status(stage) => stage.is_of(bx),
            Self::Label(key, value) => bx
                .labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|value| value == found)),
        }
    }
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let (key, value) = text.split_once('=').ok_or(InvalidFilter::Form)?;
        Ok(match key {
            "name" => Self::Name(value.to_owned()),
            "image" => Self::Image(value.to_owned()),
            "status" => Self::Status(value.parse()?),
            "label" => match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(value.to_owned(), None),
            },
            _ => return Err(InvalidFilter::Form),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_boxes_by_key_and_value() {
        let bx: BoxResponse = serde_json::from_value(serde_json::json!({
            "box_id": "b1", "name": "web-1", "status": "failed", "image": "idle", "cpus": 1,
            "memory_mib": 512, "labels": {"team": "a"},
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
        }))
        .unwrap();
        for (text, expected) in [
            ("name=web", true),
            ("name=db", false),
            ("image=idle", true),
            ("image=idl", false),
            ("status=failed", true),
            ("status=running", false),
            ("label=team", true),
            ("label=team=a", true),
            ("label=team=b", false),
            ("label=other", false),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.is_match(&bx), expected, "{text}");
        }
        for text in ["", "name", "colour=red", "status=asleep"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
