/// Marks a named point at which a test can inject a fault. Expands to nothing without the feature
/// `failpoints`.
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name);
    };
}

pub(crate) use fail_point;
