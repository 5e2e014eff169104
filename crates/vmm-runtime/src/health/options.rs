use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Probe;

/// How, and how often, to look whether a box works: as Docker's `HEALTHCHECK` defines it. Zero, but
/// for the start period, means the default.
///
/// ```
/// use std::time::Duration;
/// use vmm_runtime::HealthCheckOptions;
///
/// let check = HealthCheckOptions::socket("agent.sock").interval(Duration::from_secs(5));
/// assert_eq!(check.retries, 3);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthCheckOptions {
    /// What to do.
    pub probe: Probe,
    /// From the start to the first probe, and from one to the next; 30 s by default.
    #[serde(with = "crate::serde_millis", default = "half_a_minute")]
    pub interval: Duration,
    /// How long a probe may take before it counts as failed; 30 s by default.
    #[serde(with = "crate::serde_millis", default = "half_a_minute")]
    pub timeout: Duration,
    /// How many have to fail in a row; 3 by default.
    #[serde(default = "three")]
    pub retries: u32,
    /// How long failures do not count after the start, unless a probe succeeds; 0 by default.
    #[serde(with = "crate::serde_millis", default)]
    pub start_period: Duration,
    /// From one probe to the next during the start period; 5 s by default, and never more than
    /// the interval.
    #[serde(with = "crate::serde_millis", default = "five_seconds")]
    pub start_interval: Duration,
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn three() -> u32 {
    3
}

impl HealthCheckOptions {
    /// A command, its program first, that exits with 0 when the box works. It runs on the host, in
    /// the box's directory.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self::of(Probe::Command {
            command: command.into_iter().map(Into::into).collect(),
        })
    }

    /// A Unix socket, relative to the box's directory, at which the payload answers.
    pub fn socket(path: impl Into<std::path::PathBuf>) -> Self {
        Self::of(Probe::Socket { path: path.into() })
    }

    /// The defaults, with this probe.
    pub fn of(probe: Probe) -> Self {
        Self {
            probe,
            interval: half_a_minute(),
            timeout: half_a_minute(),
            retries: three(),
            start_period: Duration::ZERO,
            start_interval: five_seconds(),
        }
    }

    /// As in Docker, zero means the default.
    pub(super) fn with_defaults(mut self) -> Self {
        for (value, default) in [
            (&mut self.interval, half_a_minute()),
            (&mut self.timeout, half_a_minute()),
            (&mut self.start_interval, five_seconds()),
        ] {
            if value.is_zero() {
                *value = default;
            }
        }
        if self.retries == 0 {
            self.retries = three();
        }
        self
    }

    /// Sets [`interval`](Self::interval).
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`retries`](Self::retries).
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets [`start_period`](Self::start_period).
    #[must_use]
    pub fn start_period(mut self, period: Duration) -> Self {
        self.start_period = period;
        self
    }

    /// Sets [`start_interval`](Self::start_interval).
    #[must_use]
    pub fn start_interval(mut self, interval: Duration) -> Self {
        self.start_interval = interval;
        self
    }
}
