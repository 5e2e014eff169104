use std::time::Duration;

pub(crate) const MEDIAN: f64 = 0.5;
pub(crate) const P99: f64 = 0.99;

/// The measured samples, in blocks.
#[derive(Clone, Default)]
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

    /// Adds a block of one sample.
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

    /// Returns the median over all blocks of the ratio of the quantiles.
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

/// The number of repetitions and the length of the time windows.
pub(crate) struct Effort {
    quick: bool,
}

impl Effort {
    pub(crate) fn new(quick: bool) -> Self {
        Self { quick }
    }

    /// Returns `full` repetitions, or a fifth of them in a quick run.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(5) } else { full }
    }

    pub(crate) fn window(&self, full: Duration) -> Duration {
        if self.quick { full / 4 } else { full }
    }
}

/// Returns (round, index) pairs: the indices upwards in even rounds, downwards in odd ones. So no
/// peer always follows the same one, whose deferred work would disturb it.
pub(crate) fn turns(count: usize, rounds: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rounds).flat_map(move |round| {
        (0..count).map(move |turn| {
            if round % 2 == 0 {
                (round, turn)
            } else {
                (round, count - 1 - turn)
            }
        })
    })
}
