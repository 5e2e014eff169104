use serde::{Deserialize, Serialize};

/// Why a shim could not run a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The spec was missing, incomplete or invalid.
    Spec,
    /// The shim has no engine with the name in the spec.
    UnknownEngine,
    /// The program does not exist.
    NotFound,
    /// The program exists, but cannot be executed.
    NotExecutable,
    /// A file in the box directory could not be written.
    Storage,
    /// Another shim already runs in the box directory. Only reported to the runtime, never
    /// recorded.
    InUse,
    /// Any other failure of the engine.
    #[serde(other)]
    Engine,
}

impl FailureKind {
    /// Returns the exit code of docker: 127 if the program does not exist, 126 if it cannot be
    /// executed, and 125 for all other failures.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            _ => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ending;

    #[test]
    fn an_unknown_failure_kind_is_read_as_an_engine_failure() {
        let newer = r#"{"how":"failed","kind":"moon_phase","message":"full"}"#;
        let ending: Ending = serde_json::from_str(newer).unwrap();
        assert_eq!(ending, Ending::failed(FailureKind::Engine, "full"));
    }
}
