//! The driver's connection to the runtime process, which it replaces again and again.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shim_reaper::{Pidfd, Signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::leftovers;
use crate::losses::{Column, Losses};
use crate::server::{Change, Message, Op, Reply, Request, View};
use crate::slots::{Event, Slots};

/// Longer than any operation takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) struct Client {
    root: PathBuf,
    slots: Arc<Slots>,
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
    pub(crate) fn new(root: PathBuf, slots: Arc<Slots>, losses: Arc<Losses>) -> Self {
        Self {
            root,
            slots,
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

    fn spawn(&self, warm_shims: usize) -> io::Result<Child> {
        Command::new(std::env::current_exe()?)
            .arg("--runtime")
            .arg(self.root.join("home"))
            .arg(warm_shims.to_string())
            .env("TMPDIR", self.root.join("tmp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }

    /// Spawns a runtime process and waits until it has opened the home. If `kills_warm_shim`, then
    /// kills one of its warm shims.
    pub(crate) fn open(
        self: &Arc<Self>,
        warm_shims: usize,
        kills_warm_shim: bool,
    ) -> io::Result<Process> {
        let mut child = self.spawn(warm_shims)?;
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
        if kills_warm_shim {
            self.kill_warm_shim(child.id());
        }
        *self.link() = Some(Link {
            stdin,
            serial: 0,
            pending: HashMap::new(),
        });
        let client = Arc::clone(self);
        let epoch = self.epoch() + 1;
        let reader = thread::spawn(move || client.read(lines, epoch));
        self.epoch.send_modify(|epoch| *epoch += 1);
        Ok(Process { pidfd, reader })
    }

    /// Spawns a runtime process and kills it after this time, while it recovers the boxes.
    pub(crate) fn open_and_kill(&self, time: Duration) -> io::Result<()> {
        let mut child = self.spawn(2)?;
        let pidfd = Pidfd::open(child.id())?;
        thread::sleep(time);
        pidfd.send_signal(Signal::SIGKILL)?;
        // Not `wait`: the driver reaps all its children on one thread.
        while !pidfd.has_exited() {
            thread::sleep(Duration::from_millis(1));
        }
        drop(child.stdin.take());
        Ok(())
    }

    /// Kills a warm shim before the first request. A restart may have taken it.
    fn kill_warm_shim(&self, runtime: u32) {
        if let Some(shim) = leftovers::warm_shim_of(runtime)
            && let Ok(shim) = Pidfd::open(shim)
        {
            for mut slot in self.slots.all().filter(|slot| slot.restarts) {
                slot.run.iter_mut().for_each(|run| {
                    run.shim_killed = true;
                    run.interrupted = true;
                });
            }
            let _ = shim.send_signal(Signal::SIGKILL);
        }
    }

    fn read(&self, mut lines: Lines<BufReader<ChildStdout>>, epoch: u64) {
        while let Some(message) = next(&mut lines) {
            match message {
                Message::Reply(serial, reply) => {
                    let waiting = self.link().as_mut().and_then(|l| l.pending.remove(&serial));
                    waiting.map(|waiting| waiting.send(reply));
                }
                Message::Event(change, view) => self.pass_on(epoch, change, view),
                Message::Closed => {
                    for mut slot in self.slots.all() {
                        let generation = slot.generation;
                        slot.events.push(Event {
                            epoch,
                            generation,
                            change: Change::Closed,
                            view: None,
                        });
                    }
                }
                Message::Opened | Message::NotOpened(_) => {}
            }
        }
        // Fails the pending calls.
        *self.link() = None;
    }

    /// Passes an event on to the operator of the box.
    fn pass_on(&self, epoch: u64, change: Change, view: View) {
        match self.slots.find(&view.name) {
            Some((slot, generation)) => slot.lock().events.push(Event {
                epoch,
                generation,
                change,
                view: Some(view),
            }),
            None => self
                .losses
                .add(Column::EventsWrong, format!("{change:?} {view:?}")),
        }
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
