use jiff::{SignedDuration, Timestamp};

/// How long ago this was, in its largest unit.
pub(crate) fn age_of(then: Timestamp) -> String {
    in_words(Timestamp::now().duration_since(then))
}

fn in_words(age: SignedDuration) -> String {
    // A clock that was set back makes nothing younger than now.
    let seconds = age.as_secs().max(0);
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    let (length, name) = unit.unwrap_or((1, "s"));
    format!("{}{name}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, words) in [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7_199, "1h"),
            (86_400 * 400, "400d"),
        ] {
            assert_eq!(in_words(SignedDuration::from_secs(seconds)), words);
        }
    }
}
