/// What a row's values are; times are in seconds.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Time,
    Bytes,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Time => "s",
            Self::Bytes => "bytes",
        }
    }

    pub(crate) fn format(self, value: f64) -> String {
        match self {
            Self::Bytes => format!("{value:.0} B"),
            Self::Time if value < 1e-3 => format!("{} µs", three_digits(value * 1e6)),
            Self::Time if value < 1.0 => format!("{} ms", three_digits(value * 1e3)),
            Self::Time => format!("{} s", three_digits(value)),
        }
    }
}

fn three_digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
