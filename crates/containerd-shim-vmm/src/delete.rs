use std::env;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteResponse, ShutdownRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context;
use tokio::time::{Instant, sleep, timeout};
use vmm_protocol::with_causes;
use vmm_runtime::RuntimeError;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::events::timestamp;
use crate::leftover_events::{self, Leftover};
use crate::pod_share::PodShare;
use crate::state_dir::{StateDir, Worker};
use crate::{guest, log, recorded_process, tokio_runtime};

/// How long the cleanup may take before another process continues it. containerd kills `delete` after 5 s, and the events
/// need up to 2 s.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a server that still runs may take to end, before it is killed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a server may take to respond.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Cleans up after the server of a container has ended or was killed. Returns how the container ended.
pub(crate) fn delete(args: &Args) -> Result<DeleteResponse, ShimError> {
    let bundle = match &args.bundle {
        Some(path) => path.clone(),
        None => env::current_dir().map_err(ShimError::system("find the working directory"))?,
    };
    let bundle = Bundle::new(bundle);
    let state = bundle.address()?.as_deref().and_then(StateDir::of_address);
    let runtime = tokio_runtime()?;
    let record = runtime.block_on(async {
        let leftover = match &state {
            None => Leftover::Nothing,
            // A further container of a pod shares the server with the sandbox, whose `delete` ends the guest.
            Some(state) if is_member(args, &bundle, state)? => {
                PodShare::of(state).remove_container(&args.id)?;
                Leftover::OfMember(state)
            }
            Some(state) => {
                let is_clean = clean_up_in_time(state, &args.id).await;
                Leftover::OfPod { state, is_clean }
            }
        };
        leftover_events::settle(args, &bundle, leftover).await
    })?;
    // A cleanup that has not ended in time ends with this process.
    runtime.shutdown_background();
    let mut response = DeleteResponse::new();
    response.pid = record.pid;
    response.exit_status = record.exit.code;
    response.exited_at = MessageField::some(timestamp(record.exit.at));
    Ok(response)
}

/// Continues the cleanup of a pod, whose directory is given as the bundle, and sends its events.
pub(crate) fn finish(args: &Args) -> Result<(), ShimError> {
    let state = args.bundle.as_deref().map(StateDir::new);
    let state = state.ok_or_else(|| ShimError::Usage("no bundle".to_owned()))?;
    tokio_runtime()?.block_on(clean_up(&state, &args.id))?;
    leftover_events::forward(args)
}

/// Returns whether the container belongs to a pod whose sandbox is another container.
///
/// # Errors
///
/// If it is not known. The caller must not end the pod then.
fn is_member(args: &Args, bundle: &Bundle, state: &StateDir) -> Result<bool, ShimError> {
    match state.owner() {
        Some(owner) => Ok(owner.id != args.id),
        None => Ok(bundle.sandbox(&bundle.spec()?).is_some()),
    }
}

/// Returns whether the cleanup has succeeded in time.
async fn clean_up_in_time(state: &StateDir, id: &str) -> bool {
    match timeout(CLEANUP_TIMEOUT, clean_up(state, id)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            log(with_causes(&error));
            false
        }
        Err(_) => false,
    }
}

/// Ends the guest of a pod, and removes everything that it has left but its events. Kills a server that hangs.
async fn clean_up(state: &StateDir, id: &str) -> Result<(), ShimError> {
    if !state.path().exists() {
        return Ok(());
    }
    request_shutdown(state, id).await;
    let mut deadline = Instant::now() + SHUTDOWN_TIMEOUT;
    let mut is_killed = false;
    loop {
        match guest::clean_up(state).await {
            Ok(()) => break,
            Err(RuntimeError::Locked { .. }) if Instant::now() < deadline => {
                sleep(POLL_INTERVAL).await;
            }
            Err(RuntimeError::Locked { .. }) if !is_killed => {
                kill_server(state).await?;
                is_killed = true;
                deadline = Instant::now() + SHUTDOWN_TIMEOUT;
            }
            Err(RuntimeError::Locked { .. }) => return Err(ShimError::StillServed),
            Err(error) => return Err(ShimError::Guest(error)),
        }
    }
    state.remove_guest()
}

/// Kills the server of a pod, whose guest ends with it.
async fn kill_server(state: &StateDir) -> Result<(), ShimError> {
    let server = state.process(Worker::Server);
    let server = server.ok_or(ShimError::StillServed)?;
    let is_ended = recorded_process::kill(&server, SHUTDOWN_TIMEOUT).await;
    if is_ended.map_err(ShimError::system("kill the server of the pod"))? {
        Ok(())
    } else {
        Err(ShimError::StillServed)
    }
}

/// Asks a server to end, if one still runs.
async fn request_shutdown(state: &StateDir, id: &str) {
    let Ok(client) = Client::connect(&state.address()).await else {
        return;
    };
    let mut request = ShutdownRequest::new();
    request.id = id.to_owned();
    request.now = true;
    let context = context::with_duration(REQUEST_TIMEOUT);
    let _ = TaskClient::new(client).shutdown(context, &request).await;
}
