//! The events that a server has left when it was killed.
//!
//! After `delete`, containerd publishes the exit of each task that it knows, with the status that `delete` has
//! returned. A containerd that was restarted meanwhile does not know the task, and publishes nothing.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::unix::process::parent_id;
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskDelete, TaskExit};
use pidfd_spawn::{Command, Stdio};
use tokio::time::{Instant, sleep};
use vmm_protocol::PidRecord;

use crate::args::Args;
use crate::bundle::{Bundle, ExitRecord};
use crate::error::ShimError;
use crate::events::{EventQueue, decode};
use crate::pod::LAST_EVENTS_TIMEOUT;
use crate::process::Exit;
use crate::start::TTRPC_ADDRESS;
use crate::state_dir::StateDir;
use crate::tokio_runtime;

/// How long `delete` waits for containerd. One that starts does not receive events before `delete` has returned.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The time in which clients of a containerd that has just started subscribe to its events again.
const SUBSCRIBE_TIME: Duration = Duration::from_secs(2);

/// Lets each exit of a container be reported once: by containerd, or by an event. Sends what a sandbox has left.
/// Returns how the container ended.
pub(crate) async fn settle(
    args: &Args,
    bundle: &Bundle,
    state: Option<&StateDir>,
    is_member: bool,
) -> Result<ExitRecord, ShimError> {
    let mut record = bundle.exit().unwrap_or_else(|| ExitRecord {
        exit: Exit::killed(),
        pid: 0,
        is_published: false,
    });
    let (Some(state), Some(containerd)) = (state, bundle.containerd()) else {
        // It was not created, so there is nothing to report.
        return Ok(record);
    };
    let is_known = PidRecord::of(parent_id()).ok().flatten() == Some(containerd);
    let own = if is_member {
        // The `delete` of the sandbox removes the directory.
        let parent = state.path().parent();
        (!is_known && !record.is_published)
            .then(|| StateDir::create(parent.unwrap_or(state.path())))
            .transpose()?
    } else {
        Some(state.clone()).filter(|state| state.path().exists())
    };
    let Some(own) = own else { return Ok(record) };
    let Some(queue) = open(&own, args).await? else {
        spawn_forward(args, &own)?;
        return Ok(record);
    };
    if is_known {
        withdraw_exits(&queue, bundle)?;
    } else if !record.is_published {
        queue.publish_exit(&args.id, "", record.pid, record.exit);
        record.is_published = true;
        bundle.set_exit(&record)?;
    }
    if send(&queue, FORWARD_TIMEOUT).await {
        own.remove()?;
    } else {
        drop(queue);
        spawn_forward(args, &own)?;
    }
    Ok(record)
}

/// Opens the queue of a pod, unless a process that still runs sends its events.
async fn open(state: &StateDir, args: &Args) -> Result<Option<EventQueue>, ShimError> {
    let deadline = Instant::now() + FORWARD_TIMEOUT;
    loop {
        match EventQueue::open(state.events(), &args.namespace) {
            Err(ShimError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                sleep(POLL_INTERVAL).await;
            }
            queue => return queue.map(Some),
        }
    }
}

/// Removes the exits that containerd will publish: those of containers that it has not deleted.
fn withdraw_exits(queue: &EventQueue, bundle: &Bundle) -> Result<(), ShimError> {
    let events = queue.pending();
    let deleted = events
        .iter()
        .filter_map(|(_, envelope)| decode::<TaskDelete>(envelope));
    let deleted: BTreeSet<String> = deleted
        .filter(|event| event.id.is_empty())
        .map(|event| event.container_id)
        .collect();
    for (number, envelope) in &events {
        let Some(event) = decode::<TaskExit>(envelope) else {
            continue;
        };
        let id = event.container_id;
        if event.id != id || deleted.contains(&id) {
            continue;
        }
        if let Some((bundle, mut record)) = bundle
            .sibling(&id)
            .and_then(|bundle| bundle.exit().map(|record| (bundle, record)))
        {
            record.is_published = false;
            bundle.set_exit(&record)?;
        }
        queue.remove(*number);
    }
    Ok(())
}

/// Sends events for this time at most. Returns whether containerd has acknowledged all of them.
async fn send(queue: &EventQueue, limit: Duration) -> bool {
    let address = env::var(TTRPC_ADDRESS).unwrap_or_default();
    tokio::select! {
        biased;
        is_empty = queue.wait_empty(limit) => is_empty,
        () = queue.forward(&address) => false,
    }
}

/// Starts a process that waits for a containerd that is away.
fn spawn_forward(args: &Args, state: &StateDir) -> Result<(), ShimError> {
    let program =
        env::current_exe().map_err(ShimError::file("find the program", "/proc/self/exe"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &args.namespace, "-bundle"])
        .arg(state.path())
        .arg("forward")
        .current_dir("/")
        .setsid(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().map(drop).map_err(ShimError::Spawn)
}

/// Sends the events that are left in the directory of a pod, then removes it.
pub(crate) fn forward(args: &Args) -> Result<(), ShimError> {
    let path = args.bundle.as_deref();
    let state = path.map(StateDir::new);
    let state = state.ok_or_else(|| ShimError::Usage("no bundle".to_owned()))?;
    tokio_runtime()?.block_on(async {
        sleep(SUBSCRIBE_TIME).await;
        let deadline = Instant::now() + LAST_EVENTS_TIMEOUT;
        while state.path().exists() && Instant::now() < deadline {
            if let Some(queue) = open(&state, args).await? {
                send(&queue, LAST_EVENTS_TIMEOUT).await;
                return state.remove();
            }
        }
        Ok(())
    })
}
