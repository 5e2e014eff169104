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
use containerd_shim_protos::shim::event::Envelope;
use pidfd_spawn::{Command, Stdio};
use tokio::time::{Instant, sleep};
use vmm_protocol::PidRecord;

use crate::args::Args;
use crate::bundle::{Bundle, ExitRecord};
use crate::error::ShimError;
use crate::events::{EventQueue, SUBSCRIBE_TIME, decode, has_event};
use crate::pod::LAST_EVENTS_TIMEOUT;
use crate::process::Exit;
use crate::start::TTRPC_ADDRESS;
use crate::state_dir::{Owner, StateDir, Worker};
use crate::tokio_runtime;

/// How long `delete` waits for containerd. One that starts does not receive events before `delete` has returned.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a server has left when it ended or was killed.
#[derive(Clone, Copy)]
pub(crate) enum Leftover<'a> {
    /// No server was started.
    Nothing,
    /// A container of this pod, whose sandbox is another one.
    OfMember(&'a StateDir),
    /// A pod, with nothing but its events if it is clean.
    OfPod { state: &'a StateDir, is_clean: bool },
}

/// What a process does that continues after this one.
#[derive(Clone, Copy)]
pub(crate) enum Continuation {
    /// It sends the events of a pod that is clean.
    Forward,
    /// It cleans up after a pod, and sends its events.
    Finish,
}

impl Continuation {
    fn action(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Finish => "finish",
        }
    }
}

/// What reports the exit of a container whose server has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reporter {
    /// containerd, which knows the task, after `delete`.
    Containerd,
    /// An event that this program adds.
    Event,
    /// It has been reported, or the container was not created.
    None,
}

impl Reporter {
    fn find(args: &Args, bundle: &Bundle, record: &ExitRecord, pod: &StateDir) -> Self {
        let Some(containerd) = bundle.containerd() else {
            return Self::None;
        };
        if PidRecord::of(parent_id()).ok().flatten() == Some(containerd) {
            Self::Containerd
        } else if record.is_published || is_queued(pod, &args.id) {
            Self::None
        } else {
            Self::Event
        }
    }
}

/// Lets each exit of a container be reported once: by containerd, or by an event. Sends what a sandbox has left, and
/// starts a process for what takes longer. Returns how the container ended.
pub(crate) async fn settle(
    args: &Args,
    bundle: &Bundle,
    leftover: Leftover<'_>,
) -> Result<ExitRecord, ShimError> {
    let record = bundle.exit().unwrap_or_else(|| ExitRecord {
        exit: Exit::killed(),
        pid: 0,
        is_published: false,
    });
    let owner = Owner::of(args, bundle);
    match leftover {
        Leftover::OfMember(pod)
            if Reporter::find(args, bundle, &record, pod) == Reporter::Event =>
        {
            // The `delete` of the sandbox removes the directory of the pod.
            let parent = pod.path().parent().unwrap_or(pod.path());
            let own = StateDir::create(parent, &owner)?;
            let is_sent = send_leftover(args, bundle, &own, record, Reporter::Event).await?;
            end_or_continue(&owner, &own, true, is_sent)?;
        }
        Leftover::OfPod { state, is_clean } if state.path().exists() => {
            let reporter = Reporter::find(args, bundle, &record, state);
            let is_sent = send_leftover(args, bundle, state, record, reporter).await?;
            end_or_continue(&owner, state, is_clean, is_sent)?;
        }
        _ => {}
    }
    Ok(record)
}

/// Sends the events in the directory of a pod, after the exit of the container has been added or removed. Returns
/// whether containerd has acknowledged all of them.
async fn send_leftover(
    args: &Args,
    bundle: &Bundle,
    state: &StateDir,
    mut record: ExitRecord,
    reporter: Reporter,
) -> Result<bool, ShimError> {
    let Some(queue) = open(state, args).await? else {
        // The server still runs. It removes the directory, or the process that continues adds the exit.
        if reporter == Reporter::Event {
            state.set_exit(&record)?;
        }
        return Ok(false);
    };
    match reporter {
        Reporter::Containerd => withdraw_exits(&queue, bundle)?,
        Reporter::Event => {
            queue.publish_exit(&args.id, "", record.pid, record.exit);
            record.is_published = true;
            bundle.set_exit(&record)?;
        }
        Reporter::None => {}
    }
    Ok(send(&queue, FORWARD_TIMEOUT).await)
}

/// Removes the directory of a pod, or starts a process for what is left to do.
fn end_or_continue(
    owner: &Owner,
    state: &StateDir,
    is_clean: bool,
    is_sent: bool,
) -> Result<(), ShimError> {
    match (is_clean, is_sent) {
        (true, true) => state.remove(),
        (true, false) => spawn(owner, state, Continuation::Forward),
        (false, _) => spawn(owner, state, Continuation::Finish),
    }
}

/// Returns whether the queue of a pod has the exit of a container. A server can be killed after it has added the event,
/// and before it has recorded that.
fn is_queued(state: &StateDir, id: &str) -> bool {
    let is_exit = |envelope: &Envelope| {
        let event = decode::<TaskExit>(envelope);
        event.is_some_and(|event| event.container_id == id && event.id == id)
    };
    // An exit that is reported twice is better than one that is not.
    has_event(&state.events(), is_exit).unwrap_or(false)
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

/// Adds the exit that a `delete` has kept while the server ran, unless the server has added it.
fn add_kept_exit(queue: &EventQueue, state: &StateDir, args: &Args) {
    if let Some(record) = state.exit() {
        if !is_queued(state, &args.id) {
            queue.publish_exit(&args.id, "", record.pid, record.exit);
        }
        state.remove_exit();
    }
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

/// Starts a process that continues after this one, for example until containerd runs again.
pub(crate) fn spawn(
    owner: &Owner,
    state: &StateDir,
    continuation: Continuation,
) -> Result<(), ShimError> {
    let program =
        env::current_exe().map_err(ShimError::file("find the program", "/proc/self/exe"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &owner.namespace, "-id", &owner.id, "-bundle"])
        .arg(state.path())
        .arg(continuation.action())
        .current_dir("/")
        .setsid(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    state.spawn(Worker::Cleanup, &mut command)
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
                add_kept_exit(&queue, &state, args);
                send(&queue, LAST_EVENTS_TIMEOUT).await;
                return state.remove();
            }
        }
        Ok(())
    })
}
