use jiff::{SignedDuration, Timestamp};

/// Returns the time that has passed since `then`, in its largest unit.
pub(crate) fn format_age(then: Timestamp) -> String {
    format_duration(Timestamp::now().duration_since(then))
}

fn format_duration(age: SignedDuration) -> String {
    // The age is negative if the clock was set back.
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
    fn age_has_one_unit() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7_199, "1h"),
            (86_400 * 400, "400d"),
        ] {
            assert_eq!(format_duration(SignedDuration::from_secs(seconds)), text);
        }
    }
}
