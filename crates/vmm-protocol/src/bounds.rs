//! Bounds for what is read from a box directory: a payload can write to every file in it.

use serde::{Deserialize, Deserializer, de};

/// How many bytes of a message are kept.
const LONGEST_TEXT: usize = 4 << 10;

/// Cuts a text after at most 4 KiB, between two characters: what is kept of a message that a payload may have written.
pub fn truncate_text(text: &mut String) {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
}

pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let mut text = String::deserialize(from)?;
    truncate_text(&mut text);
    Ok(text)
}

pub(crate) fn optional_text<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    let mut text = Option::<String>::deserialize(from)?;
    text.iter_mut().for_each(truncate_text);
    Ok(text)
}

/// What `exit(3)` leaves of a code.
pub(crate) fn exit_code<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    u8::deserialize(from).map(i32::from)
}

/// The signals of `signal(7)`.
pub(crate) fn signal<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    let signal = i32::deserialize(from)?;
    match (1..=64).contains(&signal) {
        true => Ok(signal),
        false => Err(de::Error::custom("the number of a signal is 1 to 64")),
    }
}
