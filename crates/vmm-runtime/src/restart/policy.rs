use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// When the runtime starts a box again after it has ended. The policies are those of Docker, and so
/// is their text form: `no`, `on-failure[:max]`, `always`, `unless-stopped`.
///
/// A policy applies from the first successful start of a box. The first restart follows after 100
/// ms; the delay doubles with each further end, up to a minute, and begins again after a run of at
/// least 10 s. A restart that fails counts as an end. [`stop`](crate::VmmRuntime::stop) ends the
/// restarts, [`start`](crate::VmmRuntime::start) begins them again and resets their number. Pending
/// restarts survive a restart and a crash of the runtime.
///
/// ```
/// use vmm_runtime::RestartPolicy;
///
/// let policy: RestartPolicy = "on-failure:3".parse()?;
/// assert_eq!(policy, RestartPolicy::OnFailure { max: Some(3) });
/// # Ok::<(), vmm_runtime::InvalidRestartPolicy>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After a failure. Not after the end of the runtime that the box was attached to.
    OnFailure {
        /// The number of restarts after a start by the user; unlimited if not set.
        max: Option<u32>,
    },
    /// Always. A box that a user has stopped starts again when the next runtime opens the home.
    Always,
    /// Always, except that a box that a user has stopped stays stopped.
    UnlessStopped,
}

/// The text is not a [`RestartPolicy`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a restart policy; use no, on-failure[:max], always or unless-stopped")]
pub struct InvalidRestartPolicy(String);

impl RestartPolicy {
    pub(crate) fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.pad("no"),
            Self::OnFailure { max: None } => f.pad("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
            Self::Always => f.pad("always"),
            Self::UnlessStopped => f.pad("unless-stopped"),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidRestartPolicy> {
        let invalid = || InvalidRestartPolicy(text.to_owned());
        Ok(match text {
            "no" => Self::No,
            "on-failure" => Self::OnFailure { max: None },
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            _ => {
                let max = text.strip_prefix("on-failure:").ok_or_else(invalid)?;
                let max: u32 = max.parse().map_err(|_| invalid())?;
                // As with Docker, 0 is no limit.
                Self::OnFailure {
                    max: Some(max).filter(|max| *max > 0),
                }
            }
        })
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = InvalidRestartPolicy;

    fn try_from(text: String) -> Result<Self, InvalidRestartPolicy> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_parses_from_the_text_that_it_prints() {
        for text in [
            "no",
            "on-failure",
            "on-failure:3",
            "always",
            "unless-stopped",
        ] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
            let json = serde_json::to_value(policy).unwrap();
            assert_eq!(json, text);
            assert_eq!(
                serde_json::from_value::<RestartPolicy>(json).unwrap(),
                policy
            );
        }
        let unlimited = RestartPolicy::OnFailure { max: None };
        assert_eq!("on-failure:0".parse(), Ok(unlimited));
        for text in [
            "",
            "never",
            "on-failure:",
            "on-failure:-1",
            "always:3",
            "No",
        ] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }
}
