//! The serialized form of times.

/// A duration in microseconds.
pub(crate) mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_micros())
            .unwrap_or(u64::MAX)
            .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// A time in milliseconds since the Unix epoch, or null.
pub(crate) mod unix_millis {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let since_epoch = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let millis = since_epoch.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        millis.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let Some(millis) = Option::<u64>::deserialize(from)? else {
            return Ok(None);
        };
        UNIX_EPOCH
            .checked_add(Duration::from_millis(millis))
            .map(Some)
            .ok_or_else(|| D::Error::custom("the time is later than this system can represent"))
    }
}
