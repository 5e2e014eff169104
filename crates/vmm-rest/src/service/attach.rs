//! The WebSocket of a client that is attached to an execution.

use std::future::pending;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use vmm_runtime::{Execution, ExecutionInput, ExecutionOutput, TerminalSize};

use crate::wire::attach::{AttachEvent, AttachRequest, STDERR, STDOUT};
use crate::wire::{SIGNALS, exit_code};

/// How often the server sends a ping, as the public API defines.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long the client may take to respond to the close of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes of output are in a message.
const OUTPUT_CHUNK: usize = 16 << 10;

/// The client has left, or its connection has failed.
struct ClientLeft;

/// Moves the data between a client and an execution until one of them ends, or the server shuts down.
/// Without the client, the execution goes on with its stdin open.
pub(crate) async fn relay(
    mut socket: WebSocket,
    mut execution: Execution,
    takes_input: bool,
    closing: &CancellationToken,
) {
    let ended = tokio::select! {
        // Checked first: a shutdown also ends what the server reads, as if the client had left.
        biased;
        () = closing.cancelled() => Ok(close_code::AWAY),
        ended = exchange(&mut socket, &mut execution, takes_input) => ended,
    };
    let Ok(code) = ended else {
        return;
    };
    let reason = "".into();
    let close = Message::Close(Some(CloseFrame { code, reason }));
    let close = async {
        if socket.send(close).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, close).await;
}

/// Returns the code for the close of the connection, once the execution has ended.
async fn exchange(
    socket: &mut WebSocket,
    execution: &mut Execution,
    takes_input: bool,
) -> Result<u16, ClientLeft> {
    let mut pings = interval(PING_INTERVAL);
    // What the command has not read yet. No further message is received meanwhile.
    let mut input = Bytes::new();
    let mut stdout = output_message(STDOUT);
    let mut stderr = output_message(STDERR);
    while execution.stdout.is_some() || execution.stderr.is_some() {
        let message = tokio::select! {
            message = socket.recv(), if input.is_empty() => {
                match message.and_then(Result::ok).ok_or(ClientLeft)? {
                    Message::Binary(data) if takes_input => input = data,
                    Message::Binary(_) => {
                        let message = "the client is attached without stdin".to_owned();
                        send_event(socket, &AttachEvent::Error { message }).await?;
                    }
                    Message::Text(text) => {
                        if let Err(message) = handle(&text, execution) {
                            send_event(socket, &AttachEvent::Error { message }).await?;
                        }
                    }
                    Message::Close(_) => return Err(ClientLeft),
                    Message::Ping(_) | Message::Pong(_) => {}
                }
                continue;
            }
            written = write(&mut execution.stdin, &input), if !input.is_empty() => {
                input = input.slice(written.unwrap_or(input.len())..);
                continue;
            }
            is_open = read(&mut execution.stdout, &mut stdout) => {
                if !is_open {
                    execution.stdout = None;
                    continue;
                }
                std::mem::replace(&mut stdout, output_message(STDOUT))
            }
            is_open = read(&mut execution.stderr, &mut stderr) => {
                if !is_open {
                    execution.stderr = None;
                    continue;
                }
                std::mem::replace(&mut stderr, output_message(STDERR))
            }
            _ = pings.tick() => {
                send(socket, Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        send(socket, Message::Binary(message.into())).await?;
    }
    match execution.wait().await {
        Ok(ending) => {
            let exit_code = exit_code(&ending);
            send_event(socket, &AttachEvent::Exit { exit_code }).await?;
            Ok(close_code::NORMAL)
        }
        Err(error) => {
            let message = error.to_string();
            send_event(socket, &AttachEvent::Error { message }).await?;
            Ok(close_code::ERROR)
        }
    }
}

/// Carries out a text message of the client. Returns why it was not.
fn handle(text: &str, execution: &mut Execution) -> Result<(), String> {
    let request = serde_json::from_str(text);
    let done = match request.map_err(|error| format!("the message is not valid: {error}"))? {
        AttachRequest::Resize { cols, rows } => execution.resize(terminal_size(cols, rows)?),
        AttachRequest::Signal { sig } => {
            check_signal(sig)?;
            execution.signal(sig)
        }
        AttachRequest::StdinEof => {
            execution.stdin = None;
            Ok(())
        }
    };
    done.map_err(|error| error.to_string())
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
async fn write(stdin: &mut Option<ExecutionInput>, input: &[u8]) -> Option<usize> {
    stdin.as_mut()?.write(input).await.ok()
}

async fn send_event(socket: &mut WebSocket, event: &AttachEvent) -> Result<(), ClientLeft> {
    // Cannot fail: every value of the type is valid JSON.
    let text = serde_json::to_string(event).unwrap_or_default();
    send(socket, Message::Text(text.into())).await
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), ClientLeft> {
    socket.send(message).await.map_err(|_| ClientLeft)
}
