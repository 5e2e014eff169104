//! The runtime process, which the driver kills. It reads requests from stdin, one line of JSON
//! each, and writes replies and events to stdout. All requests run concurrently.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use vmm_runtime::{
    BoxChange, BoxInfo, BoxSpec, BoxStatus, Ending, RuntimeError, RuntimeOptions, VmmRuntime,
    with_causes,
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
    Reply(u64, Reply),
    Started(String),
    /// A box has stopped or failed.
    Ended(View),
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
        }
    }
}

pub(crate) fn serve(home: &Path) -> Result<(), Box<dyn Error>> {
    let tokio = tokio::runtime::Runtime::new()?;
    let runtime = match tokio.block_on(VmmRuntime::open(RuntimeOptions::new(home))) {
        Ok(runtime) => runtime,
        Err(error) => {
            send_message(&Message::NotOpened(with_causes(&error)));
            return Ok(());
        }
    };
    let mut events = runtime.events();
    send_message(&Message::Opened);
    tokio.spawn(async move {
        while let Some(event) = events.next().await {
            match event.change {
                BoxChange::Started => send_message(&Message::Started(event.info.id.into())),
                BoxChange::Stopped | BoxChange::Failed => {
                    send_message(&Message::Ended(event.info.into()))
                }
                _ => {}
            }
        }
    });
    for line in io::stdin().lines() {
        let Request { serial, op } = serde_json::from_str(&line?)?;
        if let Op::Shutdown(limit) = op {
            tokio.block_on(runtime.shutdown(limit));
            return Ok(());
        }
        let runtime = runtime.clone();
        tokio.spawn(async move {
            let result = perform(&runtime, op).await;
            let result = result.map_err(|error| format!("{error:?}"));
            send_message(&Message::Reply(serial, result));
        });
    }
    // The driver is gone.
    tokio.block_on(runtime.shutdown(Duration::from_secs(1)));
    Ok(())
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

/// Writes one message. Fails only if the driver is gone.
fn send_message(message: &Message) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let _ = io::stdout().lock().write_all(&line);
    }
}
