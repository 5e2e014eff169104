use std::time::Duration;

/// As arguments say it.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "this is no number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "this is no span of time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_pass_is_a_span_of_time() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for text in ["", "x", "nan", "inf", "-1", "1e300"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
