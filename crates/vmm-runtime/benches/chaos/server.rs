//! The runtime process, which the driver kills. It reads requests from stdin, one line of JSON
//! each, and writes replies and events to stdout. All requests run concurrently.

use std::error::Error;
use std::future::ready;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use vmm_runtime::{
    BoxChange, BoxEvent, BoxInfo, BoxSpec, BoxStatus, Ending, Events, HealthState, RuntimeError,
    RuntimeOptions, VmmRuntime, with_causes,
};

#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) serial: u64,
    pub(crate) op: Op,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    Create(Box<BoxSpec>),
    Start(String),
    Stop(String),
    StopWithin(String, Duration),
    Remove(String, bool),
    Wait(String),
    Info(String),
    List,
    Shutdown(Duration),
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    Opened,
    NotOpened(String),
    /// Follows the events that were published before the operation returned.
    Reply(u64, Reply),
    Event(Change, View),
    /// The runtime has shut down, and all events have been written.
    Closed,
}

/// A [`BoxChange`], as far as the driver checks its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    Created,
    Starting,
    Started,
    Cancelled,
    /// The box has stopped or failed.
    Ended,
    Health,
    Removed,
    /// The runtime has shut down.
    Closed,
}

/// The result of an operation. An error is the `Debug` form of a [`RuntimeError`], which begins
/// with the name of its variant; `Gone` if the process ended first; `Hung` if no reply came in
/// time.
pub(crate) type Reply = Result<Vec<View>, String>;

/// The part of a [`BoxInfo`] that the driver checks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) status: BoxStatus,
    pub(crate) pid: Option<u32>,
    pub(crate) payload_pid: Option<u32>,
    pub(crate) ending: Option<Ending>,
    pub(crate) error: Option<String>,
    pub(crate) health: Option<HealthState>,
    pub(crate) restarts: u32,
    pub(crate) restarting: bool,
}

impl View {
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.status, BoxStatus::Starting | BoxStatus::Running)
    }
}

impl From<BoxInfo> for View {
    fn from(info: BoxInfo) -> Self {
        Self {
            id: info.id.into(),
            name: info.name.unwrap_or_default(),
            status: info.status,
            pid: info.pid,
            payload_pid: info.payload_pid,
            ending: info.ending,
            error: info.error,
            health: info.health,
            restarts: info.restarts,
            restarting: info.restarting,
        }
    }
}

pub(crate) fn serve(home: &Path, warm_shims: usize) -> Result<(), Box<dyn Error>> {
    let tokio = tokio::runtime::Runtime::new()?;
    let options = RuntimeOptions::new(home).warm_shims(warm_shims);
    let runtime = match tokio.block_on(VmmRuntime::open(options)) {
        Ok(runtime) => runtime,
        Err(error) => {
            send_message(&Message::NotOpened(with_causes(&error)));
            return Ok(());
        }
    };
    let events = runtime.events();
    let (replies, receiver) = unbounded_channel();
    send_message(&Message::Opened);
    let writer = tokio.spawn(write(events, receiver));
    // If the driver is gone.
    let mut limit = Duration::from_secs(1);
    for line in io::stdin().lines() {
        let Request { serial, op } = serde_json::from_str(&line?)?;
        if let Op::Shutdown(given) = op {
            limit = given;
            break;
        }
        let runtime = runtime.clone();
        let replies = replies.clone();
        tokio.spawn(async move {
            let result = perform(&runtime, op).await;
            let result = result.map_err(|error| format!("{error:?}"));
            let _ = replies.send(Message::Reply(serial, result));
        });
    }
    tokio.block_on(runtime.shutdown(limit));
    tokio.block_on(writer)?;
    send_message(&Message::Closed);
    Ok(())
}

/// Writes replies and events until the runtime has shut down.
async fn write(mut events: Events, mut replies: UnboundedReceiver<Message>) {
    loop {
        tokio::select! {
            biased;
            Some(reply) = replies.recv() => {
                // The events that precede the reply.
                loop {
                    tokio::select! {
                        biased;
                        Some(event) = events.next() => send_event(event),
                        () = ready(()) => break,
                    }
                }
                send_message(&reply);
            }
            event = events.next() => match event {
                Some(event) => send_event(event),
                None => break,
            },
        }
    }
    replies.close();
    while let Some(reply) = replies.recv().await {
        send_message(&reply);
    }
}

async fn perform(runtime: &VmmRuntime, op: Op) -> Result<Vec<View>, RuntimeError> {
    let info = match op {
        Op::Create(spec) => runtime.create(*spec).await?,
        Op::Start(name) => runtime.start(&name).await?,
        Op::Stop(name) => runtime.stop(&name).await?,
        Op::StopWithin(name, grace) => runtime.stop_within(&name, grace).await?,
        Op::Wait(name) => runtime.wait(&name).await?,
        Op::Info(name) => runtime.info(&name).await?,
        Op::Remove(name, force) => {
            runtime.remove(&name, force).await?;
            return Ok(Vec::new());
        }
        Op::List => return Ok(runtime.list().await.into_iter().map(View::from).collect()),
        Op::Shutdown(_) => return Err(RuntimeError::Closed),
    };
    Ok(vec![info.into()])
}

fn send_event(event: BoxEvent) {
    let change = match event.change {
        BoxChange::Created => Change::Created,
        BoxChange::Starting => Change::Starting,
        BoxChange::Started => Change::Started,
        BoxChange::Cancelled => Change::Cancelled,
        BoxChange::Stopped | BoxChange::Failed => Change::Ended,
        BoxChange::Health => Change::Health,
        BoxChange::Removed => Change::Removed,
        _ => return,
    };
    send_message(&Message::Event(change, event.info.into()));
}

/// Writes one message. Fails only if the driver is gone.
fn send_message(message: &Message) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let _ = io::stdout().lock().write_all(&line);
    }
}
