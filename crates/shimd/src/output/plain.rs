/// Returns untrusted text as one line that is safe to print on a terminal: replaces every character
/// that would move the cursor, reorder text, or hide it.
pub(crate) fn plain(text: &str) -> String {
    text.replace(is_active, "\u{fffd}")
}

/// Returns true if a terminal does more with this character than to show it. Joiners are not
/// active: some languages need them.
pub(crate) fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_active_characters_are_replaced() {
        for character in [
            '\0',
            '\t',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{9f}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert_eq!(
                plain(&format!("a{character}b")),
                "a\u{fffd}b",
                "{character:?}"
            );
        }
        let text = "é ﷼ 名前 می\u{200c}خواهم 👩\u{200d}🚀 – \u{fffd}";
        assert_eq!(plain(text), text);
    }
}
