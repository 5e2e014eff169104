use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// The id of a box: a ULID, which the runtime assigns, so that ids are ordered by creation. It is
/// also the name of the directory of the box.
///
/// Clones are cheap. A `&BoxId` can be passed where a `&str` is expected, such as to the methods of
/// [`VmmRuntime`](crate::VmmRuntime), which also accept names. A directory that the runtime did not
/// create is a damaged box, and its name is the id; therefore an id can be any visible file name that
/// is UTF-8.
///
/// ```
/// use vmm_runtime::BoxId;
///
/// let id: BoxId = "01HJK4TNRPQSXYZ8WM6NCVT9R5".parse()?;
/// assert_eq!(id, "01HJK4TNRPQSXYZ8WM6NCVT9R5");
/// assert!("../etc".parse::<BoxId>().is_err());
/// # Ok::<(), vmm_runtime::InvalidBoxId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BoxId(Arc<str>);

/// The text is not a [`BoxId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid box id {0:?}; use the name of a box directory: up to 255 bytes without '/' and NUL, \
     not beginning with '.'"
)]
pub struct InvalidBoxId(String);

/// The longest name of a file.
const MAX_LEN: usize = 255;

impl BoxId {
    pub(crate) fn new(id: Ulid) -> Self {
        Self(id.to_string().into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BoxId {
    type Err = InvalidBoxId;

    fn from_str(text: &str) -> Result<Self, InvalidBoxId> {
        let is_file_name = (1..=MAX_LEN).contains(&text.len()) && !text.contains(['/', '\0']);
        // The runtime uses hidden names for directories that it creates or removes.
        if is_file_name && !text.starts_with('.') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidBoxId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for BoxId {
    type Error = InvalidBoxId;

    fn try_from(text: String) -> Result<Self, InvalidBoxId> {
        text.parse()
    }
}

impl From<BoxId> for String {
    fn from(id: BoxId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for BoxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl Deref for BoxId {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for BoxId {
    fn as_ref(&self) -> &str {
        self
    }
}

impl AsRef<Path> for BoxId {
    fn as_ref(&self) -> &Path {
        Path::new(self.as_str())
    }
}

impl Borrow<str> for BoxId {
    fn borrow(&self) -> &str {
        self
    }
}

macro_rules! compare_with {
    ($($text:ty),*) => {$(
        impl PartialEq<$text> for BoxId {
            fn eq(&self, other: &$text) -> bool {
                self.as_str() == &other[..]
            }
        }

        impl PartialEq<BoxId> for $text {
            fn eq(&self, other: &BoxId) -> bool {
                other == self
            }
        }
    )*};
}

compare_with!(str, &str, String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_name_of_a_directory() {
        for text in ["01HJK4TNRPQSXYZ8WM6NCVT9R5", "b1", "ä b", &"x".repeat(255)] {
            let id: BoxId = text.parse().unwrap();
            assert_eq!((&*id, id.to_string().as_str()), (text, text));
        }
        for text in [
            "",
            ".",
            "..",
            ".removing-b1",
            "a/b",
            "a\0",
            &"x".repeat(256),
        ] {
            assert!(text.parse::<BoxId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_id_is_serialized_as_text_and_validated_when_it_is_read() {
        let id = BoxId::new(Ulid::generate());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<BoxId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<BoxId>(r#""a/b""#).is_err());
    }
}
