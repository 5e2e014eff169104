use std::io::PipeWriter;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, write};
use vmm_protocol::frames::{ExecSpec, HostMessage, MAX_BODY, PayloadMessage, Window};
use vmm_protocol::poll::wait_until;
use vmm_protocol::{Ending, PayloadSpec};

use super::GuestEnvironment;
use super::relay::AgentPort;
use crate::{EngineError, PayloadExit};

/// The stream of the workload. The hub of a shim numbers its streams from 1.
pub(super) const WORKLOAD_STREAM: u32 = u32::MAX;

/// The stream of the request to configure the network.
pub(super) const NETWORK_STREAM: u32 = WORKLOAD_STREAM - 1;

/// The command of a box, which the agent runs in the guest.
pub(in crate::qemu) struct Workload {
    command: Vec<String>,
    input: Option<Input>,
    /// The pipe to the console log.
    output: PipeWriter,
    has_started: bool,
}

/// The stdin of the workload, until all of it is sent.
struct Input {
    text: Vec<u8>,
    sent: usize,
    window: Window,
}

/// What a message of the agent has shown about the workload.
#[derive(Debug)]
pub(super) enum Event {
    Started,
    NotStarted(EngineError),
    Exited(PayloadExit),
}

impl Workload {
    /// Returns the workload of a payload that has a command. Its output goes to the pipe.
    pub(in crate::qemu) fn new(payload: &PayloadSpec, output: PipeWriter) -> Option<Self> {
        let input = payload.stdin.as_ref().map(|text| Input {
            text: text.clone().into_bytes(),
            sent: 0,
            window: Window::new(),
        });
        (!payload.command.is_empty()).then(|| Self {
            command: payload.command.clone(),
            input,
            output,
            has_started: false,
        })
    }

    /// Requests the start.
    pub(super) fn start(
        &self,
        environment: &GuestEnvironment,
        port: &mut AgentPort,
    ) -> Result<(), EngineError> {
        let mut exec = ExecSpec::new("workload", self.command.iter().cloned());
        exec.stdin = self.input.is_some();
        // As a command on the host has the console log for both.
        exec.merge_output = true;
        environment.apply(&mut exec);
        let sent = port.send(WORKLOAD_STREAM, HostMessage::Exec(exec));
        sent.map_err(|error| EngineError::InvalidFields {
            fields: "command and env of a guest",
            source: error.into(),
        })
    }

    /// Sends as much of the stdin as the agent takes.
    pub(super) fn send_input(&mut self, port: &mut AgentPort) {
        let Some(input) = &mut self.input else {
            return;
        };
        while self.has_started && port.has_room() {
            let rest = &input.text[input.sent..];
            if rest.is_empty() {
                let _ = port.send(WORKLOAD_STREAM, HostMessage::CloseStdin);
                self.input = None;
                return;
            }
            let count = input.window.take(rest.len().min(MAX_BODY));
            if count == 0 {
                return;
            }
            let data = rest[..count].to_vec();
            input.sent += count;
            // A frame with data of this length can be encoded.
            let _ = port.send(WORKLOAD_STREAM, HostMessage::Stdin(data));
        }
    }

    /// Handles a message of the stream. A guest may send anything, at any time.
    pub(super) fn handle(
        &mut self,
        message: PayloadMessage,
        port: &mut AgentPort,
    ) -> Option<Event> {
        match (message, self.has_started) {
            (PayloadMessage::Started { .. }, false) => {
                self.has_started = true;
                Some(Event::Started)
            }
            (PayloadMessage::Exited { ending }, false) => Some(Event::NotStarted(match ending {
                Ending::Failed { kind, message } => EngineError::Workload { kind, message },
                _ => EngineError::Other("the agent ended a workload before its start".to_owned()),
            })),
            (PayloadMessage::Error(error), false) => {
                Some(Event::NotStarted(EngineError::Other(error.message)))
            }
            (PayloadMessage::Exited { ending }, true) => Some(Event::Exited(exit_of(&ending))),
            (PayloadMessage::Stdout(data) | PayloadMessage::Stderr(data), true) => {
                self.write(&data);
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let _ = port.send(WORKLOAD_STREAM, HostMessage::Credit { bytes });
                None
            }
            (PayloadMessage::Credit { bytes }, true) => {
                if let Some(input) = &mut self.input {
                    input.window.grant(bytes);
                }
                None
            }
            _ => None,
        }
    }

    /// Writes output to the console log, and waits while the pipe is full. QEMU has the same pipe, and
    /// makes it nonblocking.
    fn write(&self, mut data: &[u8]) {
        while !data.is_empty() {
            match write(&self.output, data) {
                Ok(count) => data = &data[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let _ = wait_until(&mut [PollFd::new(&self.output, PollFlags::OUT)], None);
                }
                // The log is closed: the shim ends.
                Err(_) => return,
            }
        }
    }
}

fn exit_of(ending: &Ending) -> PayloadExit {
    match ending {
        Ending::Exited { code } => PayloadExit::Code(*code),
        Ending::Signaled { signal } => PayloadExit::Signal(*signal),
        Ending::OutOfMemory => PayloadExit::OutOfMemory,
        _ => PayloadExit::Unknown,
    }
}
