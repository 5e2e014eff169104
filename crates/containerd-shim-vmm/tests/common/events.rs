//! The events that containerd reports to `ctr events`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Containerd, IMAGE, eventually};

const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The exits that containerd reports, also after it has been restarted.
pub(crate) struct ExitLog {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<LogState>,
}

#[derive(Default)]
struct LogState {
    exits: Vec<ReportedExit>,
    lines: usize,
    client: Option<Child>,
    is_over: bool,
}

/// An exit of a process, from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReportedExit {
    pub(crate) container: String,
    /// The ID of the container for its first process.
    pub(crate) process: String,
    pub(crate) code: u64,
}

impl ExitLog {
    /// Reads the events from now on.
    pub(crate) fn start(containerd: &Containerd) -> Self {
        let shared = Arc::new(Shared::default());
        let command = containerd.ctr_command(["--connect-timeout", "500ms", "events"]);
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.read(command)
        });
        let log = Self {
            shared,
            reader: Some(reader),
        };
        log.wait_connected(containerd);
        log
    }

    /// Waits until this containerd reports events to the log.
    pub(crate) fn wait_connected(&self, containerd: &Containerd) {
        let before = self.shared.state.lock().unwrap().lines;
        eventually("containerd reports an event", || {
            // Each change of a label is an event.
            let label = format!("probe={}", std::process::id());
            containerd.ctr(["images", "label", IMAGE, &label]);
            self.shared.state.lock().unwrap().lines > before
        });
    }

    /// Returns the exits of the processes of a container.
    pub(crate) fn of(&self, container: &str) -> Vec<ReportedExit> {
        let state = self.shared.state.lock().unwrap();
        let exits = state.exits.iter();
        exits
            .filter(|exit| exit.container == container)
            .cloned()
            .collect()
    }

    /// Returns the codes of the exits of the first process of a container.
    pub(crate) fn codes(&self, container: &str) -> Vec<u64> {
        let exits = self.of(container).into_iter();
        let of_first = exits.filter(|exit| exit.process == container);
        of_first.map(|exit| exit.code).collect()
    }
}

impl Shared {
    /// Runs `ctr events` again and again: it ends with its containerd.
    fn read(&self, mut command: Command) {
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        loop {
            let output = {
                let mut state = self.state.lock().unwrap();
                if state.is_over {
                    return;
                }
                let client = state.client.insert(command.spawn().unwrap());
                client.stdout.take().unwrap()
            };
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut state = self.state.lock().unwrap();
                state.lines += 1;
                state.exits.extend(ReportedExit::parse(&line));
            }
            let client = self.state.lock().unwrap().client.take();
            client.unwrap().wait().unwrap();
            thread::sleep(RETRY_INTERVAL);
        }
    }
}

impl Drop for ExitLog {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock().unwrap();
            state.is_over = true;
            if let Some(client) = &mut state.client {
                client.kill().unwrap();
            }
        }
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

impl ReportedExit {
    /// Parses a line of `ctr events`: time, namespace, topic, and the event as JSON.
    fn parse(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(" /tasks/exit ")?;
        let event: serde_json::Value = serde_json::from_str(json).ok()?;
        Some(Self {
            container: event["container_id"].as_str()?.to_owned(),
            process: event["id"].as_str()?.to_owned(),
            // Omitted if it is zero.
            code: event["exit_status"].as_u64().unwrap_or(0),
        })
    }
}
