use std::env;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteResponse, ShutdownRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context;
use tokio::time::{Instant, sleep};
use vmm_runtime::RuntimeError;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::events::timestamp;
use crate::pod_share::PodShare;
use crate::state_dir::StateDir;
use crate::{guest, leftover_events, tokio_runtime};

/// How long a server that still runs may take to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Cleans up after the server of a container has ended or was killed. Returns how the container ended.
pub(crate) fn delete(args: &Args) -> Result<DeleteResponse, ShimError> {
    let bundle = match &args.bundle {
        Some(path) => path.clone(),
        None => env::current_dir().map_err(ShimError::file("find the working directory", "."))?,
    };
    let bundle = Bundle::new(bundle);
    let state = bundle.address()?.as_deref().and_then(StateDir::of_address);
    // A further container of a pod shares the server with the sandbox, whose `delete` ends the guest.
    let is_member = bundle
        .spec()
        .is_ok_and(|spec| bundle.sandbox(&spec).is_some());
    let record = tokio_runtime()?.block_on(async {
        if let Some(state) = state.as_ref().filter(|state| state.path().exists()) {
            if is_member {
                PodShare::of(state).remove_container(&args.id)?;
            } else {
                clean_up(state, &args.id).await?;
            }
        }
        leftover_events::settle(args, &bundle, state.as_ref(), is_member).await
    })?;
    let mut response = DeleteResponse::new();
    response.pid = record.pid;
    response.exit_status = record.exit.code;
    response.exited_at = MessageField::some(timestamp(record.exit.at));
    Ok(response)
}

/// Ends the guest of a pod, and removes everything that it has left but its events.
async fn clean_up(state: &StateDir, id: &str) -> Result<(), ShimError> {
    request_shutdown(state, id).await;
    let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
    loop {
        match guest::clean_up(state).await {
            Ok(()) => break,
            Err(RuntimeError::Locked { .. }) if Instant::now() < deadline => {
                sleep(POLL_INTERVAL).await;
            }
            Err(RuntimeError::Locked { .. }) => return Err(ShimError::StillServed),
            Err(error) => return Err(ShimError::Guest(error)),
        }
    }
    state.remove_all_but_events()
}

/// Asks a server to end, if one still runs.
async fn request_shutdown(state: &StateDir, id: &str) {
    let Ok(client) = Client::connect(&state.address()).await else {
        return;
    };
    let mut request = ShutdownRequest::new();
    request.id = id.to_owned();
    request.now = true;
    let context = context::with_duration(SHUTDOWN_TIMEOUT);
    let _ = TaskClient::new(client).shutdown(context, &request).await;
}
