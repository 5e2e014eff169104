use std::time::Duration;

pub(crate) const MEDIAN: f64 = 0.5;
pub(crate) const P99: f64 = 0.99;

/// What was measured, in the blocks in which it was measured.
#[derive(Default)]
pub(crate) struct Samples {
    blocks: Vec<Vec<f64>>,
}

impl Samples {
    /// Opens a block of samples that belong together.
    pub(crate) fn open_block(&mut self) {
        self.blocks.push(Vec::new());
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.blocks.last_mut().unwrap().push(value);
    }

    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64());
    }

    /// A block of one.
    pub(crate) fn push_block(&mut self, value: f64) {
        self.blocks.push(vec![value]);
    }

    pub(crate) fn quantile(&self, q: f64) -> f64 {
        quantile(self.blocks.concat(), q)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(MEDIAN)
    }

    pub(crate) fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The median over the blocks of how the quantiles compare.
    pub(crate) fn ratio_to(&self, other: &Self, q: f64) -> f64 {
        let ratios = self
            .blocks
            .iter()
            .zip(&other.blocks)
            .map(|(ours, theirs)| quantile(ours.clone(), q) / quantile(theirs.clone(), q));
        quantile(ratios.collect(), MEDIAN)
    }
}

fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() - 1) as f64 * q;
    values[index.round() as usize]
}
