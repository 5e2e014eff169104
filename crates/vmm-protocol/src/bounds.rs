//! Bounds for values read from a box directory. The payload can write to every file there.

use serde::{Deserialize, Deserializer, de};

/// The maximum length of a message, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 4 << 10;

/// Truncates a message to at most 4 KiB, at a character boundary. Use it for text that a payload
/// may have written.
pub fn truncate_text(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
}

/// Deserializes a message and truncates it.
pub(crate) fn deserialize_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    let mut text = String::deserialize(deserializer)?;
    truncate_text(&mut text);
    Ok(text)
}

/// Deserializes an optional message and truncates it.
pub(crate) fn deserialize_optional_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let mut text = Option::<String>::deserialize(deserializer)?;
    text.iter_mut().for_each(truncate_text);
    Ok(text)
}

/// Deserializes an exit code: `exit(3)` keeps only the low 8 bits.
pub(crate) fn deserialize_exit_code<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<i32, D::Error> {
    u8::deserialize(deserializer).map(i32::from)
}

/// Deserializes a signal number of `signal(7)`.
pub(crate) fn deserialize_signal<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<i32, D::Error> {
    let signal = i32::deserialize(deserializer)?;
    if (1..=64).contains(&signal) {
        Ok(signal)
    } else {
        Err(de::Error::custom("a signal number must be from 1 to 64"))
    }
}
