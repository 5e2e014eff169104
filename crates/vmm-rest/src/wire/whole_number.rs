//! Integers of a request. A JSON schema counts `3.0` as an integer (JSON Schema 2020-12, validation,
//! section 6.1.1), while serde reads it as a floating point number.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Deserializes an integer that may have the form `3.0`.
pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128>,
{
    deserializer.deserialize_any(WholeNumber(PhantomData))
}

/// Deserializes such an integer or `null`.
pub(super) fn deserialize_option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128>,
{
    deserializer.deserialize_option(OptionalWholeNumber(PhantomData))
}

struct WholeNumber<T>(PhantomData<T>);

impl<T: TryFrom<i128>> Visitor<'_> for WholeNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number.into())
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        T::try_from(number.into()).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        if number.fract() != 0.0 {
            return Err(E::invalid_type(Unexpected::Float(number), &self));
        }
        // The cast saturates, and no type of a field holds the bounds of `i128`.
        #[expect(clippy::cast_possible_truncation, reason = "the number is whole")]
        T::try_from(number as i128).map_err(|_| E::invalid_value(Unexpected::Float(number), &self))
    }
}

struct OptionalWholeNumber<T>(PhantomData<T>);

impl<'de, T: TryFrom<i128>> Visitor<'de> for OptionalWholeNumber<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WholeNumber(self.0).expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::{CreateBoxRequest, ResizeRequest, SignalRequest};

    #[test]
    fn a_whole_number_may_have_a_fraction_of_zero() {
        let size = serde_json::from_str(r#"{"cols": 80.0, "rows": 2.4e1}"#);
        assert_eq!(size.ok(), Some(ResizeRequest::new(80, 24)));
        let signal = serde_json::from_str(r#"{"signal": 15.0}"#);
        assert_eq!(signal.ok(), Some(SignalRequest::new(15)));
        let request: CreateBoxRequest =
            serde_json::from_str(r#"{"cpus": 2.0, "memory_mib": null, "auto_pause": 0}"#).unwrap();
        assert_eq!(
            (request.cpus, request.memory_mib, request.auto_pause),
            (Some(2), None, Some(0))
        );
    }

    #[test]
    fn a_number_that_does_not_fit_is_rejected_with_its_value() {
        for (text, expected) in [
            ("1.5", "invalid type: floating point `1.5`, expected u32"),
            ("-1", "invalid value: integer `-1`, expected u32"),
            ("4294967296", "invalid value: integer `4294967296`"),
            ("1e300", "invalid value: floating point"),
            ("\"1\"", "invalid type: string"),
        ] {
            let body = format!(r#"{{"cols": {text}, "rows": 1}}"#);
            let error = serde_json::from_str::<ResizeRequest>(&body).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
