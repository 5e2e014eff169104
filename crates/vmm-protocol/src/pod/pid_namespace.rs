use serde::{Deserialize, Serialize};

/// The PID namespace of the processes of a container. As JSON, an argument of `vmm-agent container init`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PidNamespace {
    /// One of their own, in which the first process of the container is pid 1.
    New,
    /// That of the container with this ID.
    Of(String),
    /// That of the guest, in which the agent is pid 1.
    #[default]
    Guest,
}
