//! Commands that run in boxes.

use std::time::Duration;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, OriginalUri, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use utoipa::IntoParams;
use vmm_runtime::{
    ExecError, ExecSpec, Execution, PayloadSpec, PayloadSpecError, RequestErrorKind, RuntimeError,
    TerminalSize,
};

use super::boxes::{BoxIdParam, IdempotencyKey};
use crate::service::attach::{self, Session, check_signal};
use crate::service::{ApiError, ApiState, WriteTimeoutSwitch, extract};
use crate::wire::{
    ErrorCode, ErrorResponse, ExecRequest, ExecResponse, ExecutionInfo, ListExecutionsResponse,
    ResizeRequest, SignalRequest,
};

/// The longest message of a client that is attached.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The path parameters that identify an execution.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "only describes the path parameters for the document"
)]
pub(super) struct ExecutionParams {
    /// The id or the name of a box.
    #[param(
        min_length = 1,
        max_length = 128,
        example = "01HJK4TNRPQSXYZ8WM6NCVT9R5"
    )]
    box_id: String,
    /// The id of an execution.
    #[param(min_length = 1, example = "exec-01HJK5ABCDEF")]
    exec_id: String,
}

/// The size of a terminal before the client sets it.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Starts a command in a box, and the box if it is not running; responds without waiting for the
/// command. Output waits up to 10 s for a client that attaches.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/exec", tag = "Execution", operation_id = "startExecution",
    params(BoxIdParam, IdempotencyKey), request_body = ExecRequest,
    responses(
        (status = 201, description = "The execution", body = ExecResponse,
            headers(("Location" = String, description = "The path of the execution"))),
        (status = 400, description = "The request is malformed, or the payload cannot run commands",
            body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "The box was stopped or removed meanwhile", body = ErrorResponse),
        (status = 415, description = "The Content-Type is not JSON", body = ErrorResponse),
        (status = 422, description = "The box or the command could not be started",
            body = ErrorResponse),
        (status = 429, description = "Too many streams are open for a client to attach",
            body = ErrorResponse),
    ),
)]
pub(super) async fn start(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    // Has the prefix that the router may be mounted under.
    OriginalUri(uri): OriginalUri,
    extract::Json(request): extract::Json<ExecRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let spec = exec_spec(request)?;
    // The client could not attach to the execution before it has ended.
    drop(api.stream_permit()?);
    let bx = api.runtime.start(&id).await?;
    let execution_id = api.runtime.start_execution(bx.id.as_str(), spec).await?;
    let of_box = uri.path().trim_end_matches("/exec");
    let location = format!("{of_box}/executions/{execution_id}");
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(ExecResponse { execution_id }),
    ))
}

/// Lists the executions of a box: those that run, and the last 64 that have ended.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/executions", tag = "Execution",
    operation_id = "listExecutions", params(BoxIdParam),
    responses(
        (status = 200, description = "The executions", body = ListExecutionsResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn list(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<ListExecutionsResponse>, ApiError> {
    let executions = executions(&api, &id).await?;
    Ok(Json(ListExecutionsResponse {
        executions: executions.into_iter().map(Into::into).collect(),
    }))
}

/// Returns an execution.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/executions/{exec_id}", tag = "Execution",
    operation_id = "getExecution", params(ExecutionParams),
    responses(
        (status = 200, description = "The execution", body = ExecutionInfo),
        (status = 404, description = "The box or execution was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn inspect(
    State(api): State<ApiState>,
    extract::Path((id, execution)): extract::Path<(String, String)>,
) -> Result<Json<ExecutionInfo>, ApiError> {
    Ok(Json(find(&api, &id, &execution).await?.into()))
}

/// Kills an execution with SIGKILL, and removes it from the list. A client that is attached gets the
/// end.
#[utoipa::path(
    delete, path = "/v1/boxes/{box_id}/executions/{exec_id}", tag = "Execution",
    operation_id = "killExecution", params(ExecutionParams),
    responses(
        (status = 204, description = "The execution is killed and removed"),
        (status = 404, description = "The box or execution was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn remove(
    State(api): State<ApiState>,
    extract::Path((id, execution)): extract::Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    find(&api, &id, &execution).await?;
    api.runtime.remove_execution(&id, &execution).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Opens a WebSocket that carries the input and output of an execution. Binary messages of the client
/// are input; those of the server are a byte, 1 for stdout or 2 for stderr, and output. Text messages
/// are JSON objects with the field `type`: of the client `resize` (`cols`, `rows`), `signal` (`sig`)
/// and `stdin_eof`, of the server `exit` (`exit_code`), then a close, and `error` (`message`), also for dropped output. The
/// execution goes on when the client leaves, and can be attached again.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/executions/{exec_id}/attach", tag = "Execution",
    operation_id = "attachExecution", params(ExecutionParams),
    responses(
        (status = 101, description = "The connection is a WebSocket now"),
        (status = 400, description = "The request is not that of a WebSocket", body = ErrorResponse),
        (status = 404, description = "The box or execution was not found", body = ErrorResponse),
        (status = 409, description = "Another client is attached", body = ErrorResponse),
        (status = 429, description = "Too many streams are open", body = ErrorResponse),
    ),
)]
pub(super) async fn attach(
    State(api): State<ApiState>,
    extract::Path((id, execution)): extract::Path<(String, String)>,
    Extension(tasks): Extension<TaskTracker>,
    write_timeout: Option<Extension<WriteTimeoutSwitch>>,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            find(&api, &id, &execution).await?;
            return Err(ApiError::invalid(rejection.body_text()));
        }
    };
    let permit = api.stream_permit()?;
    let execution = attach_to(&api, &id, &execution).await?;
    if let Some(Extension(write_timeout)) = write_timeout {
        // A command waits for as long as its reader does.
        write_timeout.disable();
    }
    // Clients of the public API attach so without stdin; its document does not have the parameter.
    let takes_input = query.as_deref() != Some("stdin=0");
    // Tracked from now on: the server waits for the task when it shuts down.
    let tracked = tasks.token();
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let session = Session::new(socket, execution, takes_input, api.attach_timeout);
        session.run(&api.closing).await;
        drop((permit, tracked));
    }))
}

/// Sends a signal to an execution and its process group.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/executions/{exec_id}/signal", tag = "Execution",
    operation_id = "signalExecution", params(ExecutionParams, IdempotencyKey),
    request_body = SignalRequest,
    responses(
        (status = 204, description = "The signal is sent"),
        (status = 400, description = "The signal is not one that can be sent", body = ErrorResponse),
        (status = 404, description = "The box or execution was not found", body = ErrorResponse),
        (status = 409, description = "The execution has ended", body = ErrorResponse),
        (status = 415, description = "The Content-Type is not JSON", body = ErrorResponse),
    ),
)]
pub(super) async fn signal(
    State(api): State<ApiState>,
    extract::Path((id, execution)): extract::Path<(String, String)>,
    extract::Json(SignalRequest { signal }): extract::Json<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    find(&api, &id, &execution).await?;
    check_signal(signal).map_err(ApiError::invalid)?;
    let sent = api.runtime.signal_execution(&id, &execution, signal);
    sent.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resizes the terminal of an execution.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/executions/{exec_id}/resize", tag = "Execution",
    operation_id = "resizeExecution", params(ExecutionParams), request_body = ResizeRequest,
    responses(
        (status = 204, description = "The terminal is resized"),
        (status = 400, description = "The size is not valid", body = ErrorResponse),
        (status = 404, description = "The box or execution was not found", body = ErrorResponse),
        (status = 409, description = "The execution has no terminal, or has ended",
            body = ErrorResponse),
        (status = 415, description = "The Content-Type is not JSON", body = ErrorResponse),
    ),
)]
pub(super) async fn resize(
    State(api): State<ApiState>,
    extract::Path((id, execution)): extract::Path<(String, String)>,
    extract::Json(ResizeRequest { cols, rows }): extract::Json<ResizeRequest>,
) -> Result<StatusCode, ApiError> {
    let info = find(&api, &id, &execution).await?;
    let size = attach::terminal_size(cols, rows).map_err(ApiError::invalid)?;
    if !info.terminal {
        let message = format!("execution {execution} has no terminal; start it with `tty`");
        return Err(ApiError::new(ErrorCode::InvalidState, message));
    }
    let resized = api.runtime.resize_execution(&id, &execution, size);
    resized.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns what the runtime runs for a request.
fn exec_spec(request: ExecRequest) -> Result<ExecSpec, ApiError> {
    let ExecRequest {
        command,
        args,
        env,
        timeout_seconds,
        working_dir,
        tty,
        stdin,
    } = request;
    let command = std::iter::once(command).chain(args.into_iter().flatten());
    // A command in a box has the rules of its payload.
    let mut payload = PayloadSpec::command(command);
    payload.env = env.unwrap_or_default();
    payload.working_dir = working_dir.map(Into::into);
    payload.check().map_err(|error| match error {
        PayloadSpecError::Command(reason) => ApiError::invalid(format!("command: {reason}")),
        error => ApiError::invalid(error.to_string()),
    })?;
    let mut spec = ExecSpec::new("", payload.command);
    spec.env = payload.env;
    spec.working_dir = payload.working_dir;
    spec.stdin = stdin.unwrap_or(true);
    spec.terminal = tty.unwrap_or_default().then_some(DEFAULT_TERMINAL);
    if let Some(seconds) = timeout_seconds {
        if seconds.is_nan() || seconds < MIN_TIMEOUT_SECONDS {
            let message = format!("timeout_seconds must be at least {MIN_TIMEOUT_SECONDS}");
            return Err(ApiError::invalid(message));
        }
        let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        spec.timeout_millis = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    }
    Ok(spec)
}

const MIN_TIMEOUT_SECONDS: f64 = 0.1;

/// Returns the executions of a box. One that is not running has none.
async fn executions(api: &ApiState, id: &str) -> Result<Vec<vmm_runtime::ExecutionInfo>, ApiError> {
    match api.runtime.executions(id).await {
        Err(RuntimeError::NotRunning { .. } | RuntimeError::Starting { .. }) => Ok(Vec::new()),
        executions => Ok(executions?),
    }
}

async fn find(
    api: &ApiState,
    id: &str,
    execution: &str,
) -> Result<vmm_runtime::ExecutionInfo, ApiError> {
    let executions = executions(api, id).await?.into_iter();
    let mut found = executions.filter(|info| info.id == execution);
    found.next().ok_or_else(|| not_found(id, execution))
}

fn not_found(id: &str, execution: &str) -> ApiError {
    let message = format!("execution {execution:?} not found in box {id:?}");
    ApiError::new(ErrorCode::NotFound, message)
}

/// How long a client that attaches again waits until the server has noticed that it had left.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

async fn attach_to(api: &ApiState, id: &str, execution: &str) -> Result<Execution, ApiError> {
    let deadline = Instant::now() + DETACH_TIMEOUT;
    loop {
        let attached = api.runtime.attach(id, execution).await;
        match &attached {
            Err(RuntimeError::Exec { source, .. })
                if is_in_use(source) && Instant::now() < deadline =>
            {
                sleep(POLL_INTERVAL).await;
            }
            Err(RuntimeError::NotRunning { .. } | RuntimeError::Starting { .. }) => {
                return Err(not_found(id, execution));
            }
            _ => return Ok(attached?),
        }
    }
}

fn is_in_use(error: &ExecError) -> bool {
    matches!(error, ExecError::Refused(error) if error.kind == RequestErrorKind::InUse)
}
