use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Probe;

/// The options of a health check, with the semantics of Docker's `HEALTHCHECK`. A zero means the
/// default, except for the start period.
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
    /// The probe.
    pub probe: Probe,
    /// The time from the start to the first probe, and between probes; 30 s by default.
    #[serde(with = "crate::serde_millis", default = "default_interval")]
    pub interval: Duration,
    /// The time after which a probe counts as failed; 30 s by default.
    #[serde(with = "crate::serde_millis", default = "default_interval")]
    pub timeout: Duration,
    /// The number of consecutive failures that make a box unhealthy; 3 by default.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// The time after the start during which failures do not count, until a probe succeeds; 0 by
    /// default.
    #[serde(with = "crate::serde_millis", default)]
    pub start_period: Duration,
    /// The time between probes during the start period; 5 s by default, and never more than the
    /// interval.
    #[serde(with = "crate::serde_millis", default = "default_start_interval")]
    pub start_interval: Duration,
}

fn default_interval() -> Duration {
    Duration::from_secs(30)
}

fn default_start_interval() -> Duration {
    Duration::from_secs(5)
}

fn default_retries() -> u32 {
    3
}

impl HealthCheckOptions {
    /// Creates a health check that runs a command on the host, in the box's directory. The first
    /// element is the program. Exit code 0 means healthy.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self::of(Probe::Command {
            command: command.into_iter().map(Into::into).collect(),
        })
    }

    /// Creates a health check that pings a Unix socket of the payload. The path is relative to the
    /// box's directory.
    pub fn socket(path: impl Into<std::path::PathBuf>) -> Self {
        Self::of(Probe::Socket { path: path.into() })
    }

    /// Creates a health check with this probe and the default times.
    pub fn of(probe: Probe) -> Self {
        Self {
            probe,
            interval: default_interval(),
            timeout: default_interval(),
            retries: default_retries(),
            start_period: Duration::ZERO,
            start_interval: default_start_interval(),
        }
    }

    /// Replaces zeros with the defaults, as Docker does.
    pub(super) fn with_defaults(mut self) -> Self {
        for (value, default) in [
            (&mut self.interval, default_interval()),
            (&mut self.timeout, default_interval()),
            (&mut self.start_interval, default_start_interval()),
        ] {
            if value.is_zero() {
                *value = default;
            }
        }
        if self.retries == 0 {
            self.retries = default_retries();
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
