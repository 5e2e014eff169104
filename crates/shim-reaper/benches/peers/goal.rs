/// A ratio to reach.
pub(crate) struct Goal {
    pub(crate) against: &'static str,
    pub(crate) reached: f64,
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    /// So many times as cheap as the other.
    Cheaper(f64),
}

impl Goal {
    pub(crate) fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.reached <= limit,
            Limit::Cheaper(limit) => self.reached >= limit,
        }
    }

    pub(crate) fn reached(&self) -> String {
        match self.limit {
            Limit::AtMost(_) => format!("{:.2} x {}", self.reached, self.against),
            Limit::Cheaper(_) => format!("{:.0} x below {}", self.reached, self.against),
        }
    }

    pub(crate) fn limit(&self) -> String {
        match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::Cheaper(limit) => format!("at least {limit}"),
        }
    }
}
