//! The WebSocket of a client that is attached to an execution.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use vmm_runtime::{Execution, ExecutionInput, ExecutionOutput, TerminalSize};

use crate::wire::attach::{AttachEvent, AttachRequest, STDERR, STDOUT};
use crate::wire::{SIGNALS, exit_code};

/// How many pings the server sends before a silent client counts as gone.
const PINGS_PER_TIMEOUT: u32 = 3;

const MIN_PING_INTERVAL: Duration = Duration::from_millis(1);

/// How many bytes of input wait for the command before the server stops reading from the client.
const MAX_INPUT: usize = 1 << 20;

/// How long the client may take to respond to the close of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes of output are in a message.
const OUTPUT_CHUNK: usize = 16 << 10;

/// The client has left, or its connection has failed.
struct ClientLeft;

/// A client that is attached to an execution.
pub(crate) struct Session {
    socket: WebSocket,
    execution: Execution,
    takes_input: bool,
    /// What the command has not read yet.
    input: VecDeque<u8>,
    /// Whether the stdin of the command is closed after the input.
    is_input_complete: bool,
    /// See [`Limits::attach_timeout`](crate::Limits::attach_timeout).
    timeout: Duration,
    /// When the client last sent a message, or could not because the server did not read.
    heard: Instant,
    /// Whether output was sent since then. A client that reads slowly sees the pings after it.
    has_sent_output: bool,
    /// How many bytes of dropped output the client knows of.
    reported_dropped: u64,
}

impl Session {
    pub(crate) fn new(
        socket: WebSocket,
        execution: Execution,
        takes_input: bool,
        timeout: Duration,
    ) -> Self {
        Self {
            socket,
            execution,
            takes_input,
            input: VecDeque::new(),
            is_input_complete: false,
            timeout,
            heard: Instant::now(),
            has_sent_output: false,
            reported_dropped: 0,
        }
    }

    /// Moves the data between the client and the execution until one of them ends, or the server shuts
    /// down. Without the client, the execution goes on with its stdin open.
    pub(crate) async fn run(mut self, closing: &CancellationToken) {
        let ended = tokio::select! {
            // Checked first: a shutdown also ends what the server reads, as if the client had left.
            biased;
            () = closing.cancelled() => Ok(close_code::AWAY),
            ended = self.exchange() => ended,
        };
        let Ok(code) = ended else {
            // A message may have failed although the client had sent input before it left.
            let _ = timeout(CLOSE_TIMEOUT, self.receive_rest()).await;
            let _ = timeout(CLOSE_TIMEOUT, self.write_input()).await;
            return;
        };
        let reason = "".into();
        let close = Message::Close(Some(CloseFrame { code, reason }));
        let close = async {
            if self.socket.send(close).await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, close).await;
    }

    /// Receives what a client has sent before it left.
    async fn receive_rest(&mut self) {
        while self.input.len() < MAX_INPUT
            && let Some(Ok(message)) = self.socket.recv().await
            && self.receive(message).await.is_ok()
        {}
    }

    /// Returns the code for the close of the connection, once the execution has ended.
    async fn exchange(&mut self) -> Result<u16, ClientLeft> {
        let mut pings = interval((self.timeout / PINGS_PER_TIMEOUT).max(MIN_PING_INTERVAL));
        let mut stdout = output_message(STDOUT);
        let mut stderr = output_message(STDERR);
        while self.execution.stdout.is_some() || self.execution.stderr.is_some() {
            let is_full = self.input.len() >= MAX_INPUT;
            let output = tokio::select! {
                message = self.socket.recv(), if !is_full => {
                    self.receive(message.and_then(Result::ok).ok_or(ClientLeft)?).await?;
                    continue;
                }
                written = write(&mut self.execution.stdin, &self.input), if !self.input.is_empty() => {
                    self.input.drain(..written.unwrap_or(self.input.len()));
                    self.close_input_at_end();
                    continue;
                }
                is_open = read(&mut self.execution.stdout, &mut stdout) => {
                    if !is_open {
                        self.execution.stdout = None;
                        continue;
                    }
                    std::mem::replace(&mut stdout, output_message(STDOUT))
                }
                is_open = read(&mut self.execution.stderr, &mut stderr) => {
                    if !is_open {
                        self.execution.stderr = None;
                        continue;
                    }
                    std::mem::replace(&mut stderr, output_message(STDERR))
                }
                _ = pings.tick() => {
                    self.check_client(is_full)?;
                    self.send(Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            self.report_dropped().await?;
            self.has_sent_output = true;
            self.send(Message::Binary(output.into())).await?;
        }
        self.report_dropped().await?;
        match self.execution.wait().await {
            Ok(ending) => {
                let exit_code = exit_code(&ending);
                self.send_event(&AttachEvent::Exit { exit_code }).await?;
                Ok(close_code::NORMAL)
            }
            Err(error) => {
                self.send_error(error.to_string()).await?;
                Ok(close_code::ERROR)
            }
        }
    }

    /// Handles a message of the client.
    async fn receive(&mut self, message: Message) -> Result<(), ClientLeft> {
        self.heard = Instant::now();
        self.has_sent_output = false;
        match message {
            Message::Binary(_) if !self.takes_input => {
                self.send_error("the client is attached without stdin".to_owned())
                    .await
            }
            Message::Binary(data) => {
                self.input.extend(&data);
                Ok(())
            }
            Message::Text(text) => match self.handle(&text) {
                Ok(()) => Ok(()),
                Err(message) => self.send_error(message).await,
            },
            Message::Close(_) => Err(ClientLeft),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }

    /// Carries out a text message of the client. Returns why it was not.
    fn handle(&mut self, text: &str) -> Result<(), String> {
        let request = serde_json::from_str(text);
        let done = match request.map_err(|error| format!("the message is not valid: {error}"))? {
            AttachRequest::Resize { cols, rows } => {
                self.execution.resize(terminal_size(cols, rows)?)
            }
            AttachRequest::Signal { sig } => {
                check_signal(sig)?;
                self.execution.signal(sig)
            }
            AttachRequest::StdinEof => {
                self.is_input_complete = true;
                self.close_input_at_end();
                Ok(())
            }
        };
        done.map_err(|error| error.to_string())
    }

    /// Closes the stdin of the command when the command has all input of the client.
    fn close_input_at_end(&mut self) {
        if self.is_input_complete && self.input.is_empty() {
            self.execution.stdin = None;
        }
    }

    /// Returns an error if the client has been silent for so long that it must be gone.
    fn check_client(&mut self, is_full: bool) -> Result<(), ClientLeft> {
        if is_full {
            self.heard = Instant::now();
        }
        if self.has_sent_output || self.heard.elapsed() < self.timeout {
            Ok(())
        } else {
            Err(ClientLeft)
        }
    }

    /// Writes the input that a client has sent before it left.
    async fn write_input(&mut self) {
        while !self.input.is_empty() {
            let written = write(&mut self.execution.stdin, &self.input).await;
            self.input.drain(..written.unwrap_or(self.input.len()));
        }
        self.close_input_at_end();
    }

    /// Reports output that was dropped before what the client gets next.
    async fn report_dropped(&mut self) -> Result<(), ClientLeft> {
        let dropped = self.execution.dropped_bytes();
        let new = dropped - std::mem::replace(&mut self.reported_dropped, dropped);
        if new == 0 {
            return Ok(());
        }
        let message = format!("{new} bytes of output were dropped while no client read them");
        self.send_error(message).await
    }

    async fn send_error(&mut self, message: String) -> Result<(), ClientLeft> {
        self.send_event(&AttachEvent::Error { message }).await
    }

    async fn send_event(&mut self, event: &AttachEvent) -> Result<(), ClientLeft> {
        // Cannot fail: every value of the type is valid JSON.
        let text = serde_json::to_string(event).unwrap_or_default();
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientLeft> {
        self.socket.send(message).await.map_err(|_| ClientLeft)
    }
}

/// Checks that clients may send the signal.
pub(crate) fn check_signal(signal: i32) -> Result<(), String> {
    match signal {
        signal if SIGNALS.contains(&signal) => Ok(()),
        9 => Err("signal 9 is not sent; delete the execution to kill it".to_owned()),
        signal => Err(format!(
            "signal {signal} is not sent; send HUP, INT, QUIT, ABRT, USR1, USR2, TERM or WINCH"
        )),
    }
}

/// Returns the size of a terminal, which is smaller than 65,536 characters.
pub(crate) fn terminal_size(cols: u32, rows: u32) -> Result<TerminalSize, String> {
    if cols == 0 || rows == 0 {
        return Err("cols and rows must be at least 1".to_owned());
    }
    let bounded = |count| u16::try_from(count).unwrap_or(u16::MAX);
    Ok(TerminalSize {
        rows: bounded(rows),
        cols: bounded(cols),
    })
}

fn output_message(channel: u8) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + OUTPUT_CHUNK);
    message.push(channel);
    message
}

/// Appends output. Returns false at its end. Never returns without an output.
async fn read(output: &mut Option<ExecutionOutput>, message: &mut Vec<u8>) -> bool {
    match output {
        Some(output) => output.read_buf(message).await.is_ok_and(|count| count > 0),
        None => pending().await,
    }
}

/// Writes a part of the input. Returns `None` if the command does not read it.
async fn write(stdin: &mut Option<ExecutionInput>, input: &VecDeque<u8>) -> Option<usize> {
    let (first, _) = input.as_slices();
    stdin.as_mut()?.write(first).await.ok()
}
