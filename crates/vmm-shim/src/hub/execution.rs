use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::libc::SIGKILL;
use vmm_protocol::Ending;
use vmm_protocol::frames::{
    ExecSpec, Execution as Listed, HostMessage, INITIAL_CREDIT, MAX_BODY, PayloadMessage, Window,
};

use super::client::Client;
use super::output_buffer::OutputBuffer;
use super::relay::PayloadConnection;

/// How much memory the output of an execution takes while no client reads it, in bytes.
const KEPT_OUTPUT: usize = 64 << 10;

/// How much of each text in an ending is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 256;

/// How long a command that was started without a client waits for one before output is dropped.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// A command in the box, or a file transfer, as the hub knows it.
#[derive(Debug)]
pub(super) struct Execution {
    id: String,
    /// Its stream to the payload.
    stream: u32,
    has_terminal: bool,
    timeout: Option<Duration>,
    started: Instant,
    started_at_millis: u64,
    pid: Option<u32>,
    output: OutputBuffer,
    /// Until when no output is dropped, because a client is about to attach.
    keeps_until: Option<Instant>,
    /// The number of bytes of output that were not kept.
    dropped: u64,
    /// How many more bytes of output the payload may send, once it takes the frame that says so.
    output_credit: u32,
    input: VecDeque<u8>,
    input_window: Window,
    is_input_complete: bool,
    /// The client that gets the output.
    reader: Option<Reader>,
    ending: Option<(Ending, Instant)>,
    /// Whether the payload has sent all output.
    is_complete: bool,
    /// Whether it is in the list for clients.
    is_listed: bool,
    transfer: Option<Transfer>,
}

/// The direction of a file transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// From the host to the guest.
    Put,
    /// From the guest to the host.
    Get,
}

/// The stream of a client to which output is sent.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) client: u64,
    pub(super) stream: u32,
    window: Window,
    /// Whether it knows how the command ended.
    has_ending: bool,
    /// The number of bytes of input since the last credit for the client.
    consumed: u32,
}

impl Execution {
    pub(super) fn new(spec: &ExecSpec, stream: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: spec.id.clone(),
            stream,
            has_terminal: spec.terminal.is_some(),
            timeout: spec.timeout_millis.map(Duration::from_millis),
            started: Instant::now(),
            started_at_millis: millis(now.unwrap_or_default()),
            pid: None,
            output: OutputBuffer::default(),
            keeps_until: None,
            dropped: 0,
            output_credit: 0,
            input: VecDeque::new(),
            input_window: Window::new(),
            is_input_complete: false,
            reader: None,
            ending: None,
            is_complete: false,
            is_listed: true,
            transfer: None,
        }
    }

    /// Creates a file transfer, which no client can list or attach to.
    pub(super) fn of_transfer(transfer: Transfer, stream: u32) -> Self {
        // No client can choose an id with a space.
        let spec = ExecSpec::new(format!("transfer {stream}"), [""; 0]);
        Self {
            is_listed: false,
            transfer: Some(transfer),
            ..Self::new(&spec, stream)
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns how the command ended. Output can follow until it [is complete](Self::is_complete).
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref().map(|(ending, _)| ending)
    }

    /// Returns whether the command has ended, and the payload has sent all its output.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Removes it from the list. It is dropped once it is complete.
    pub(super) fn unlist(&mut self) {
        self.is_listed = false;
    }

    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Returns which file transfer it is, if it is one. That ends when its client leaves.
    pub(super) fn transfer(&self) -> Option<Transfer> {
        self.transfer
    }

    pub(super) fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }

    /// Returns the entry in the list for clients.
    pub(super) fn listed(&self) -> Listed {
        let (ending, end) = match &self.ending {
            Some((ending, end)) => (Some(ending.clone()), *end),
            None => (None, Instant::now()),
        };
        let is_killed = ending == Some(Ending::Signaled { signal: SIGKILL });
        let duration = end.duration_since(self.started);
        Listed {
            timed_out: is_killed && self.timeout.is_some_and(|timeout| timeout <= duration),
            id: self.id.clone(),
            started_at_millis: self.started_at_millis,
            duration_millis: millis(duration),
            ending,
            terminal: self.has_terminal,
        }
    }

    /// Keeps all output for a client that is about to attach.
    pub(super) fn await_reader(&mut self) {
        self.keeps_until = Some(Instant::now() + ATTACH_TIMEOUT);
    }

    /// Returns whether a client is about to attach.
    pub(super) fn awaits_reader(&self) -> bool {
        self.keeps_until.is_some_and(|until| until > Instant::now())
    }

    /// Returns whether a client can attach to it, unless another one is attached.
    pub(super) fn is_attachable(&self) -> bool {
        self.is_listed || self.awaits_reader()
    }

    /// Returns whether it runs, or its output is being read or waits for a client.
    pub(super) fn is_active(&self) -> bool {
        !self.is_complete || self.reader.is_some() || self.awaits_reader()
    }

    /// Returns when output is dropped that no client has read, if the command waits for that.
    pub(super) fn drop_deadline(&self) -> Option<Instant> {
        let keeps_until = self.keeps_until?;
        (self.output.memory() > KEPT_OUTPUT).then_some(keeps_until)
    }

    pub(super) fn attach(&mut self, client: u64, stream: u32) {
        self.keeps_until = None;
        self.reader = Some(Reader {
            client,
            stream,
            window: Window::new(),
            has_ending: false,
            consumed: 0,
        });
    }

    pub(super) fn detach(&mut self) {
        self.reader = None;
    }

    pub(super) fn set_started(&mut self, pid: u32) {
        self.pid = Some(pid);
    }

    /// Stores how the execution ended, unless that is known, and returns what is stored.
    pub(super) fn set_ending(&mut self, ending: Ending) -> Ending {
        let now = Instant::now();
        let new = || (ending.truncated_to(MAX_MESSAGE_BYTES), now);
        self.ending.get_or_insert_with(new).0.clone()
    }

    /// Stores how the execution ended, and that no output follows, and returns what is stored. One that has
    /// not started is not listed.
    pub(super) fn complete(&mut self, ending: Ending) -> Ending {
        if self.pid.is_none() {
            self.is_listed = false;
            self.keeps_until = None;
        }
        self.is_complete = true;
        self.set_ending(ending)
    }

    /// Adds output of the command. Drops what exceeds the credit of the stream, which a guest may
    /// ignore.
    pub(super) fn add_output(&mut self, is_stderr: bool, data: &[u8]) {
        if self.output.len() + data.len() > INITIAL_CREDIT as usize {
            self.dropped += data.len() as u64;
        } else {
            self.output.push(is_stderr, data);
        }
    }

    /// Adds input of the client. Returns false if it has sent more than its credit.
    pub(super) fn add_input(&mut self, data: &[u8]) -> bool {
        if self.input.len() + data.len() > INITIAL_CREDIT as usize {
            return false;
        }
        self.input.extend(data);
        true
    }

    pub(super) fn close_input(&mut self) {
        self.is_input_complete = true;
    }

    /// Returns how many bytes of input a client may send.
    pub(super) fn input_credit(&self) -> u32 {
        let waiting = u32::try_from(self.input.len()).unwrap_or(u32::MAX);
        INITIAL_CREDIT.saturating_sub(waiting)
    }

    pub(super) fn grant_input(&mut self, bytes: u32) {
        self.input_window.grant(bytes);
    }

    pub(super) fn grant_output(&mut self, bytes: u32) {
        if let Some(reader) = &mut self.reader {
            reader.window.grant(bytes);
        }
    }

    /// Returns whether the payload gets frames as soon as it takes them: input, its end, or credit.
    pub(super) fn has_frames_for_payload(&self) -> bool {
        let has_input = if self.input.is_empty() {
            self.is_input_complete
        } else {
            self.input_window.bytes() > 0
        };
        has_input || self.output_credit > 0
    }

    /// Sends input to the payload, as far as it takes it.
    pub(super) fn send_input(
        &mut self,
        payload: &mut PayloadConnection,
        client: Option<&mut Client>,
    ) {
        while !self.input.is_empty() && payload.has_room() {
            let count = self.input_window.take(self.input.len().min(MAX_BODY));
            if count == 0 {
                break;
            }
            let data = self.input.drain(..count).collect();
            let _ = payload.send(self.stream, HostMessage::Stdin(data));
            if let Some(reader) = &mut self.reader {
                reader.consumed += u32::try_from(count).unwrap_or(u32::MAX);
            }
        }
        if self.is_input_complete && self.input.is_empty() && payload.has_room() {
            self.is_input_complete = false;
            let _ = payload.send(self.stream, HostMessage::CloseStdin);
        }
        if let (Some(client), Some(reader)) = (client, &mut self.reader)
            && reader.consumed > 0
        {
            let bytes = std::mem::take(&mut reader.consumed);
            client.send(reader.stream, PayloadMessage::Credit { bytes });
        }
    }

    /// Sends output to the client, as far as it takes it, or drops what is not kept. Lets the payload
    /// send as much again. Returns true once the client has all output and the ending.
    pub(super) fn send_output(
        &mut self,
        payload: Option<&mut PayloadConnection>,
        client: Option<&mut Client>,
    ) -> bool {
        let mut consumed = 0;
        let mut is_finished = false;
        let awaits_reader = self.awaits_reader();
        match (client, &mut self.reader) {
            (Some(client), Some(reader)) => {
                if self.dropped > 0 {
                    let bytes = std::mem::take(&mut self.dropped);
                    client.send(reader.stream, PayloadMessage::Dropped { bytes });
                }
                let before = self.output.len();
                while client.has_room() {
                    let left = self.output.len();
                    let Some(message) = self.output.pop(reader.window.bytes()) else {
                        break;
                    };
                    reader.window.take(left - self.output.len());
                    client.send(reader.stream, message);
                }
                consumed = before - self.output.len();
                if let Some((ending, _)) = &self.ending {
                    let ending = ending.clone();
                    if self.is_complete && self.output.is_empty() {
                        client.send(reader.stream, PayloadMessage::Exited { ending });
                        is_finished = true;
                    } else if !std::mem::replace(&mut reader.has_ending, true) {
                        client.send(reader.stream, PayloadMessage::Ended { ending });
                    }
                }
            }
            _ if awaits_reader => {}
            _ => {
                self.keeps_until = None;
                consumed = self.output.shrink_to(KEPT_OUTPUT);
                self.dropped += consumed as u64;
            }
        }
        let consumed = u32::try_from(consumed).unwrap_or(u32::MAX);
        self.output_credit = self.output_credit.saturating_add(consumed);
        if self.is_complete {
            self.output_credit = 0;
        }
        if let Some(payload) = payload
            && self.output_credit > 0
            && payload.has_room()
        {
            let bytes = std::mem::take(&mut self.output_credit);
            let _ = payload.send(self.stream, HostMessage::Credit { bytes });
        }
        is_finished
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
