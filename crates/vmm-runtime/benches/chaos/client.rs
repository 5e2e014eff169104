//! The driver's connection to the runtime process, which it replaces again and again.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shim_reaper::{Pidfd, Signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::losses::{Column, Losses};
use crate::server::{Message, Op, Reply, Request};

/// Longer than any operation takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) struct Client {
    root: PathBuf,
    losses: Arc<Losses>,
    link: Mutex<Option<Link>>,
    /// Incremented when a runtime opens and when it begins to end: odd while one is open.
    epoch: watch::Sender<u64>,
}

struct Link {
    stdin: ChildStdin,
    serial: u64,
    pending: HashMap<u64, oneshot::Sender<Reply>>,
}

/// The runtime process.
pub(crate) struct Process {
    pidfd: Pidfd,
    reader: JoinHandle<()>,
}

impl Client {
    pub(crate) fn new(root: PathBuf, losses: Arc<Losses>) -> Self {
        Self {
            root,
            losses,
            link: Mutex::new(None),
            epoch: watch::Sender::new(0),
        }
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the epoch, which changes when a runtime opens and when it begins to end.
    pub(crate) fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Waits for an open runtime, sends it a request, and returns its reply with the epoch.
    pub(crate) async fn call(&self, op: Op) -> (Reply, u64) {
        let mut epoch = self.epoch.subscribe();
        let Ok(epoch) = epoch.wait_for(|epoch| epoch % 2 == 1).await.map(|now| *now) else {
            return (Err("Gone".to_owned()), 0);
        };
        let reply = match self.send(&op) {
            Some(reply) => timeout(CALL_TIMEOUT, reply).await,
            None => return (Err("Gone".to_owned()), epoch),
        };
        let reply = match reply {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Err("Gone".to_owned()),
            Err(_) => Err("Hung".to_owned()),
        };
        (reply, epoch)
    }

    fn send(&self, op: &Op) -> Option<oneshot::Receiver<Reply>> {
        let mut link = self.link();
        let link = link.as_mut()?;
        link.serial += 1;
        let (sender, receiver) = oneshot::channel();
        link.pending.insert(link.serial, sender);
        let request = Request {
            serial: link.serial,
            op: op.clone(),
        };
        let mut line = serde_json::to_vec(&request).ok()?;
        line.push(b'\n');
        link.stdin.write_all(&line).ok()?;
        Some(receiver)
    }

    /// Spawns a runtime process and waits until it has opened the home.
    pub(crate) fn open(self: &Arc<Self>) -> io::Result<Process> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--runtime")
            .arg(self.root.join("home"))
            .env("TMPDIR", self.root.join("tmp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pidfd = Pidfd::open(child.id())?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
        let mut lines = BufReader::new(stdout).lines();
        match next(&mut lines) {
            Some(Message::Opened) => {}
            Some(Message::NotOpened(error)) => return Err(io::Error::other(error)),
            _ => {
                return Err(io::Error::other(
                    "the runtime process ended before it opened the home",
                ));
            }
        }
        *self.link() = Some(Link {
            stdin,
            serial: 0,
            pending: HashMap::new(),
        });
        let client = Arc::clone(self);
        let reader = thread::spawn(move || client.read(lines));
        self.epoch.send_modify(|epoch| *epoch += 1);
        Ok(Process { pidfd, reader })
    }

    fn read(&self, mut lines: Lines<BufReader<ChildStdout>>) {
        // Whether the end of the last run of each box was reported.
        let mut ended = HashMap::new();
        while let Some(message) = next(&mut lines) {
            match message {
                Message::Reply(serial, reply) => {
                    let waiting = self.link().as_mut().and_then(|l| l.pending.remove(&serial));
                    waiting.map(|waiting| waiting.send(reply));
                }
                Message::Started(id) => _ = ended.insert(id, false),
                // A failed start ends a run that was never reported as started.
                Message::Ended(end) => {
                    if end.ending.is_some() && ended.insert(end.id.clone(), true) == Some(true) {
                        self.losses
                            .add(Column::EndsReportedTwice, format!("{end:?}"));
                    }
                }
                Message::Opened | Message::NotOpened(_) => {}
            }
        }
        // Fails the pending calls.
        *self.link() = None;
    }

    /// Ends the runtime process: by a shutdown with this timeout, or by SIGKILL.
    pub(crate) fn close(&self, process: Process, orderly: Option<Duration>) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        let has_crashed = process.pidfd.has_exited();
        match orderly {
            Some(limit) => _ = self.send(&Op::Shutdown(limit)),
            None => _ = process.pidfd.send_signal(Signal::SIGKILL),
        }
        let mut deadline = Instant::now() + CALL_TIMEOUT;
        while !process.pidfd.has_exited() {
            if Instant::now() >= deadline {
                self.losses.add(Column::Hung, "the shutdown");
                let _ = process.pidfd.send_signal(Signal::SIGKILL);
                deadline += CALL_TIMEOUT;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = process.reader.join();
        let status = process.pidfd.exit_status();
        let failed = status.is_some_and(|status| !status.success());
        if has_crashed || orderly.is_some() && failed {
            self.losses.add(Column::Crashed, format!("{status:?}"));
        }
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pidfd.pid()
    }
}

fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Message> {
    serde_json::from_str(&lines.next()?.ok()?).ok()
}
