//! Observes the payloads independently of the runtime: each connects to the observer, which opens
//! its pidfd, and from Linux 6.15 reads from that how the payload has really ended.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::process::ExitStatus;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shim_reaper::Pidfd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::losses::{Column, Losses};
use crate::slots::Slots;

/// The first message of a payload or of its orphan.
#[derive(Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The name of its box.
    pub(crate) name: String,
    /// Its parent.
    pub(crate) shim: u32,
    pub(crate) is_orphan: bool,
}

/// The processes of one run, as they reported themselves. A process that was killed before it could
/// be observed is missing.
#[derive(Debug, Default)]
pub(crate) struct ObservedRun {
    /// The number of the run, from 1.
    pub(crate) number: usize,
    payload: Option<Pidfd>,
    others: Vec<Pidfd>,
    /// Whether the payload was about to end by itself.
    pub(crate) has_ended: bool,
}

impl ObservedRun {
    pub(crate) fn is_of(&self, payload: u32) -> bool {
        self.payload.as_ref().is_some_and(|p| p.pid() == payload)
    }

    /// Returns how the payload ended, if it has and the kernel reports it.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.payload.as_ref()?.exit_status()
    }

    /// Returns the processes that are running.
    pub(crate) fn running(&self) -> Vec<u32> {
        let processes = self.payload.iter().chain(&self.others);
        let running = processes.filter(|process| !process.has_exited());
        running.map(Pidfd::pid).collect()
    }
}

/// Binds the observer to an abstract address.
pub(crate) fn listen(address: &str) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(address)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Serves payloads forever.
pub(crate) async fn observe(listener: UnixListener, slots: Arc<Slots>, losses: Arc<Losses>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let (slots, losses) = (Arc::clone(&slots), Arc::clone(&losses));
            // An error means that the payload was killed.
            tokio::spawn(async move { follow(stream, &slots, &losses).await.ok() });
        }
    }
}

async fn follow(stream: UnixStream, slots: &Slots, losses: &Losses) -> io::Result<()> {
    // The process waits for the reply, so its pid is its own. If it was killed, there is none.
    let pid = stream.peer_cred()?.pid().map(i32::cast_unsigned);
    let process = pid.and_then(|pid| Pidfd::open(pid).ok());
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let Greeting {
        name,
        shim,
        is_orphan,
    } = serde_json::from_str(&line)?;
    let Some((slot, generation)) = slots.find(&name) else {
        return Ok(());
    };
    let number = {
        let mut slot = slot.lock();
        if slot.generation != generation {
            if process.is_some_and(|process| !process.has_exited()) {
                losses.add(
                    Column::ProcessesLeft,
                    format!("{name} was removed, and process {pid:?} of it runs"),
                );
            }
            return Ok(());
        }
        if is_orphan {
            if let Some(run) = slot.observed.last_mut() {
                run.others.extend(process);
            }
            0
        } else {
            let number = slot.observed.len() + 1;
            let is_own = shim != std::process::id();
            let shim = is_own.then(|| Pidfd::open(shim).ok()).flatten();
            slot.observed.push(ObservedRun {
                number,
                payload: process,
                others: shim.into_iter().collect(),
                has_ended: false,
            });
            number
        }
    };
    stream.write_all(format!("{number}\n").as_bytes()).await?;
    line.clear();
    if stream.read_line(&mut line).await? > 0 && !is_orphan {
        slot.lock().run_ends(generation, number);
        stream.write_all(b"\n").await?;
    }
    Ok(())
}
