use crate::unit::Unit;

#[derive(Clone, Copy)]
pub(crate) enum Value {
    Measured(f64),
    /// Nobody waited any longer.
    MoreThan(f64),
}

impl Value {
    pub(crate) fn number(self) -> f64 {
        match self {
            Self::Measured(value) | Self::MoreThan(value) => value,
        }
    }

    pub(crate) fn format(self, unit: Unit) -> String {
        match self {
            Self::Measured(value) => unit.format(value),
            Self::MoreThan(value) => format!("> {}", unit.format(value)),
        }
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Measured(value)
    }
}
