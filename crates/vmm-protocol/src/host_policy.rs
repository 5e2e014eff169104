use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What the operator of a host decides for the payloads of all boxes.
///
/// The runtime sends it to every shim, in the [`InstanceSpec`](crate::InstanceSpec).
///
/// ```
/// use vmm_protocol::{ConfinementRule, HostPolicy};
///
/// let policy = HostPolicy::default();
/// assert!(policy.applies(ConfinementRule::Landlock));
/// assert!(!policy.allow_arguments);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HostPolicy {
    /// The rules that are not applied; none by default.
    pub disabled_rules: BTreeSet<ConfinementRule>,
    /// Whether a spec can add arguments to the command line of a VMM. Such an argument can give the
    /// guest any file of the host. False by default.
    pub allow_arguments: bool,
    /// Whether a spec can connect a guest to a network namespace of the host. The guest then receives what
    /// arrives there, and sends any frame. False by default.
    pub allow_network: bool,
}

impl HostPolicy {
    /// Returns whether the rule is applied.
    pub fn applies(&self, rule: ConfinementRule) -> bool {
        !self.disabled_rules.contains(&rule)
    }

    /// Returns whether every field has its default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Disables a rule.
    #[must_use]
    pub fn disable(mut self, rule: ConfinementRule) -> Self {
        self.disabled_rules.insert(rule);
        self
    }

    /// Sets [`allow_arguments`](Self::allow_arguments).
    #[must_use]
    pub fn allow_arguments(mut self, allow: bool) -> Self {
        self.allow_arguments = allow;
        self
    }

    /// Sets [`allow_network`](Self::allow_network).
    #[must_use]
    pub fn allow_network(mut self, allow: bool) -> Self {
        self.allow_network = allow;
        self
    }
}

/// A rule that keeps the VMM of a guest from the host. All are applied by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConfinementRule {
    /// A filter of system calls, `seccomp(2)`.
    Seccomp,
    /// Rules for files, TCP, signals and abstract sockets, `landlock(7)`.
    Landlock,
    /// A network namespace without interfaces, `network_namespaces(7)`.
    NetworkNamespace,
    /// A user of its own for each box, without privileges.
    User,
}

impl ConfinementRule {
    /// All rules.
    pub const ALL: [Self; 4] = [
        Self::Seccomp,
        Self::Landlock,
        Self::NetworkNamespace,
        Self::User,
    ];

    /// Returns the name of the rule.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::NetworkNamespace => "network_namespace",
            Self::User => "user",
        }
    }
}

impl fmt::Display for ConfinementRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A rule that is not applied to a payload, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnappliedRule {
    /// The rule.
    pub rule: ConfinementRule,
    /// Why it is not applied: the operator has disabled it, or the host does not support it.
    pub reason: String,
}
