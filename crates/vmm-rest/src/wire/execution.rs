//! Commands that run in a box.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::whole_number;

/// The request to run a command in a box. The `Debug` form shows only the program, since arguments
/// and variables can be secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ExecRequest {
    /// The program.
    #[schema(pattern = r"^[^\x00]+$")]
    pub command: String,
    /// The arguments of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = args_schema)]
    pub args: Option<Vec<String>>,
    /// Environment variables, added to those of the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = env_schema)]
    pub env: Option<BTreeMap<String, String>>,
    /// The time in seconds after which the command is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.1)]
    pub timeout_seconds: Option<f64>,
    /// The working directory, an absolute path; that of the box by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^/[^\x00]*$")]
    pub working_dir: Option<String>,
    /// Whether the command gets a terminal; `false` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    /// Whether the command gets a stdin, which stays open until a client closes it; `true` by default.
    /// Otherwise a command without a terminal reads an end of file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<bool>,
}

fn text_without_nul() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[^\x00]*$"))
}

fn args_schema() -> ArrayBuilder {
    ArrayBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
        .description(Some("The arguments of the program."))
        .items(text_without_nul())
}

fn env_schema() -> ObjectBuilder {
    let name = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[^=\x00]+$"));
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some("Environment variables, added to those of the box."))
        .property_names(Some(name))
        .additional_properties(Some(text_without_nul()))
}

impl ExecRequest {
    /// Creates a request to run a program with arguments.
    pub fn new<S: Into<String>>(
        command: impl Into<String>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            command: command.into(),
            args: Some(args.into_iter().map(Into::into).collect()),
            ..Self::default()
        }
    }
}

impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest")
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// The response to an [`ExecRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ExecResponse {
    /// The id of the execution.
    pub execution_id: String,
}

/// An execution: a command that runs in a box, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ExecutionInfo {
    /// The id of the execution.
    pub execution_id: String,
    /// Whether the command runs, and if not, how it ended.
    pub status: ExecutionStatus,
    /// The exit code, or minus the number of the signal that ended the command; `null` while it runs.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// When the command was started.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// How long the command ran, in milliseconds; `null` while it runs.
    #[serde(default)]
    pub duration_ms: Option<u64>,
    /// Why the command ended, if not by itself.
    #[serde(default)]
    pub error_message: Option<String>,
    /// Whether the command has a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// The status of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExecutionStatus {
    /// The command runs.
    Running,
    /// The command has exited.
    Completed,
    /// A signal has ended the command.
    Killed,
    /// The command was killed because its timeout was over.
    TimedOut,
    /// A status that only a newer server knows.
    #[serde(other)]
    Other,
}

// Not derived: a server never sends `other`, and the public API does not have it.
impl PartialSchema for ExecutionStatus {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The status of an execution."))
            .enum_values(Some(["running", "completed", "killed", "timed_out"]))
            .into()
    }
}

impl ToSchema for ExecutionStatus {}

/// The executions of a box: those that run, and the last that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ListExecutionsResponse {
    /// The executions.
    pub executions: Vec<ExecutionInfo>,
}

/// The signals that clients may send: HUP, INT, QUIT, ABRT, USR1, USR2, TERM and WINCH.
pub(crate) const SIGNALS: [i32; 8] = [1, 2, 3, 6, 10, 12, 15, 28];

fn signal_schema() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some(
            "The signal number: of HUP, INT, QUIT, ABRT, USR1, USR2, TERM or WINCH. `DELETE` kills \
             the execution.",
        ))
        .enum_values(Some(SIGNALS))
}

/// The request to send a signal to an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct SignalRequest {
    /// The signal number: of HUP, INT, QUIT, ABRT, USR1, USR2, TERM or WINCH. `DELETE` kills the
    /// execution.
    #[serde(deserialize_with = "whole_number::deserialize")]
    #[schema(schema_with = signal_schema)]
    pub signal: i32,
}

impl SignalRequest {
    /// Creates a request with a signal number.
    pub fn new(signal: i32) -> Self {
        Self { signal }
    }
}

/// The request to resize the terminal of an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ResizeRequest {
    /// The width in characters.
    #[serde(deserialize_with = "whole_number::deserialize")]
    #[schema(minimum = 1)]
    pub cols: u32,
    /// The height in characters.
    #[serde(deserialize_with = "whole_number::deserialize")]
    #[schema(minimum = 1)]
    pub rows: u32,
}

impl ResizeRequest {
    /// Creates a request with a size.
    pub fn new(cols: u32, rows: u32) -> Self {
        Self { cols, rows }
    }
}

#[cfg(feature = "server")]
impl From<vmm_runtime::ExecutionInfo> for ExecutionInfo {
    fn from(info: vmm_runtime::ExecutionInfo) -> Self {
        use vmm_runtime::Ending;
        let status = match &info.ending {
            None => ExecutionStatus::Running,
            Some(_) if info.timed_out => ExecutionStatus::TimedOut,
            Some(Ending::Exited { .. }) => ExecutionStatus::Completed,
            Some(_) => ExecutionStatus::Killed,
        };
        let error_message = match &info.ending {
            Some(Ending::OutOfMemory) => {
                Some("the kernel killed the command: out of memory".to_owned())
            }
            Some(Ending::Failed { message, .. }) => Some(message.clone()),
            _ => None,
        };
        let started_at = i64::try_from(info.started_at_millis).unwrap_or(i64::MAX);
        Self {
            execution_id: info.id,
            status,
            exit_code: info.ending.as_ref().map(exit_code),
            started_at: Timestamp::from_millisecond(started_at).unwrap_or(Timestamp::MAX),
            duration_ms: info.ending.is_some().then_some(info.duration_millis),
            error_message,
            tty: info.terminal,
        }
    }
}

/// Returns the exit code of a command, or minus the number of the signal that has ended it.
#[cfg(feature = "server")]
pub(crate) fn exit_code(ending: &vmm_runtime::Ending) -> i32 {
    use vmm_runtime::Ending;
    const SIGKILL: i32 = 9;
    match ending {
        Ending::Exited { code } => *code,
        Ending::Signaled { signal } => -signal,
        // It was killed because its box has run out of memory, or has ended.
        _ => -SIGKILL,
    }
}
