//! Measurements that are compared in pairs.

use std::time::Duration;

/// Pairs of measurements, compared by their medians.
#[derive(Default)]
pub struct Pairs(Vec<(Duration, Duration)>);

impl Pairs {
    pub fn add(&mut self, measured: Duration, bare: Duration) {
        self.0.push((measured, bare));
    }

    /// Prints a row: both medians, and the median of the ratios.
    pub fn print(&self, what: &str, target: Option<f64>) {
        let milliseconds = |duration: &Duration| duration.as_secs_f64() * 1e3;
        let boxes = median(self.0.iter().map(|(a, _)| milliseconds(a)));
        let bare = median(self.0.iter().map(|(_, b)| milliseconds(b)));
        let ratio = median(
            self.0
                .iter()
                .map(|(a, b)| milliseconds(a) / milliseconds(b)),
        );
        let target = match target {
            Some(target) => format!("{target} x | {}", met(ratio, target)),
            None => " | ".to_owned(),
        };
        println!("| {what} | {boxes:.2} ms | {bare:.2} ms | {ratio:.2} | {target} |");
    }
}

pub fn met(measured: f64, target: f64) -> &'static str {
    if measured <= target { "yes" } else { "**no**" }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
