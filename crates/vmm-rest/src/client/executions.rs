use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{BoxStream, SplitSink};
use futures::{SinkExt, Stream, StreamExt, stream};
use reqwest::{Method, StatusCode, Upgraded, header};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::{Client, ClientError};
use crate::wire::attach::{AttachEvent, AttachRequest, STDERR, STDOUT};
use crate::wire::{
    ExecRequest, ExecResponse, ExecutionInfo, ListExecutionsResponse, ResizeRequest, SignalRequest,
};

type Socket = WebSocketStream<Upgraded>;

/// Commands in boxes.
impl Client {
    /// Starts a command in a box, and the box if it is not running. Does not wait for the command.
    /// [`attach`](Self::attach) within 10 s to get all of its output.
    pub async fn exec(&self, id: &str, body: &ExecRequest) -> Result<ExecResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "exec"])?;
        let response = self.send(request.json(body)).await?;
        response.check().await?.json().await
    }

    /// Returns the executions of a box: those that run, and the last that have ended.
    pub async fn executions(&self, id: &str) -> Result<Vec<ExecutionInfo>, ClientError> {
        let path = ["v1", "boxes", id, "executions"];
        let list: ListExecutionsResponse = self.get(path).await?;
        Ok(list.executions)
    }

    /// Returns an execution.
    pub async fn execution(&self, id: &str, execution: &str) -> Result<ExecutionInfo, ClientError> {
        self.get(["v1", "boxes", id, "executions", execution]).await
    }

    /// Removes an execution from the list, and kills it if it still runs.
    pub async fn remove_execution(&self, id: &str, execution: &str) -> Result<(), ClientError> {
        let path = ["v1", "boxes", id, "executions", execution];
        let request = self.request(Method::DELETE, path)?;
        self.send(request).await?.check().await.map(drop)
    }

    /// Sends a signal to an execution and its process group.
    pub async fn signal_execution(
        &self,
        id: &str,
        execution: &str,
        signal: i32,
    ) -> Result<(), ClientError> {
        let path = ["v1", "boxes", id, "executions", execution, "signal"];
        let request = self.request(Method::POST, path)?;
        let request = request.json(&SignalRequest::new(signal));
        self.send(request).await?.check().await.map(drop)
    }

    /// Resizes the terminal of an execution.
    pub async fn resize_execution(
        &self,
        id: &str,
        execution: &str,
        size: &ResizeRequest,
    ) -> Result<(), ClientError> {
        let path = ["v1", "boxes", id, "executions", execution, "resize"];
        let request = self.request(Method::POST, path)?.json(size);
        self.send(request).await?.check().await.map(drop)
    }

    /// Attaches to an execution: to its input, and to its output and end. Only one client at a time
    /// can. When both parts are dropped, the execution goes on.
    pub async fn attach(
        &self,
        id: &str,
        execution: &str,
    ) -> Result<(ExecutionInput, ExecutionEvents), ClientError> {
        let path = ["v1", "boxes", id, "executions", execution, "attach"];
        // The timeout of reqwest covers the whole connection.
        let request = self
            .request(Method::GET, path)?
            .timeout(Duration::MAX)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key());
        let response = timeout(self.response_timeout, self.send(request))
            .await
            .map_err(|_| ClientError::stream_idle(&self.at, self.response_timeout))??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let response = response.check().await?;
            return Err(ClientError::UnexpectedResponse {
                at: self.at.clone(),
                status: response.status().as_u16(),
                reason: "the connection is not a WebSocket".to_owned(),
            });
        }
        let at = self.at.clone();
        let upgraded = response.response.upgrade().await;
        let upgraded = upgraded.map_err(|source| ClientError::Interrupted {
            at: at.clone(),
            source,
        })?;
        let socket = Socket::from_raw_socket(upgraded, Role::Client, None).await;
        let (sink, stream) = socket.split();
        let events = stream::unfold(Some((at.clone(), stream)), async |state| {
            let (at, mut stream) = state?;
            loop {
                let event = match stream.next().await? {
                    Ok(Message::Close(_)) => return None,
                    Ok(message) => event(message, &at),
                    Err(error) => Some(Err(disconnected(&at, error))),
                };
                let is_last = matches!(event, Some(Ok(ExecutionEvent::Exited { .. }) | Err(_)));
                if let Some(event) = event {
                    return Some((event, (!is_last).then_some((at, stream))));
                }
            }
        });
        Ok((ExecutionInput { at, sink }, ExecutionEvents(events.boxed())))
    }
}

/// The input of an execution: see [`Client::attach`].
///
/// # Cancel safety
///
/// If the future of a method is dropped, the message may be sent all the same, but not a part of it.
pub struct ExecutionInput {
    at: String,
    sink: SplitSink<Socket, Message>,
}

impl ExecutionInput {
    /// Writes to the stdin of the command. Waits while the command does not read it.
    pub async fn write(&mut self, data: impl Into<Vec<u8>>) -> Result<(), ClientError> {
        self.send(Message::Binary(data.into().into())).await
    }

    /// Closes the stdin of the command. A command with a terminal reads an end of file.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.request(AttachRequest::StdinEof).await
    }

    /// Resizes the terminal of the command.
    pub async fn resize(&mut self, size: &ResizeRequest) -> Result<(), ClientError> {
        let ResizeRequest { cols, rows } = *size;
        self.request(AttachRequest::Resize { cols, rows }).await
    }

    async fn request(&mut self, request: AttachRequest) -> Result<(), ClientError> {
        // Cannot fail: every value of the type is valid JSON.
        let text = serde_json::to_string(&request).unwrap_or_default();
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        let sent = self.sink.send(message).await;
        sent.map_err(|error| disconnected(&self.at, error))
    }
}

impl fmt::Debug for ExecutionInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionInput").finish_non_exhaustive()
    }
}

/// What an execution writes, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutionEvent {
    /// Output, or all output of a command with a terminal.
    Stdout(Vec<u8>),
    /// Error output.
    Stderr(Vec<u8>),
    /// The command has ended. No event follows.
    Exited {
        /// The exit code, or minus the number of the signal that ended the command.
        exit_code: i32,
    },
    /// The server has not carried out a request, or lost the execution.
    Error {
        /// The cause.
        message: String,
    },
}

/// The output and the end of an execution: see [`Client::attach`].
///
/// The stream ends without [`ExecutionEvent::Exited`], or with [`ClientError::Disconnected`], if the
/// server shuts down. The execution may go on then.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream does not lose events.
#[must_use = "streams do nothing unless polled"]
pub struct ExecutionEvents(BoxStream<'static, Result<ExecutionEvent, ClientError>>);

impl Stream for ExecutionEvents {
    type Item = Result<ExecutionEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for ExecutionEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionEvents").finish_non_exhaustive()
    }
}

/// Returns the event of a message, if it has one.
fn event(message: Message, at: &str) -> Option<Result<ExecutionEvent, ClientError>> {
    let unexpected = |reason: String| ClientError::UnexpectedResponse {
        at: at.to_owned(),
        status: StatusCode::SWITCHING_PROTOCOLS.as_u16(),
        reason,
    };
    match message {
        Message::Binary(data) => Some(match data.split_first() {
            Some((&STDOUT, data)) => Ok(ExecutionEvent::Stdout(data.to_vec())),
            Some((&STDERR, data)) => Ok(ExecutionEvent::Stderr(data.to_vec())),
            _ => Err(unexpected("output of an unknown channel".to_owned())),
        }),
        Message::Text(text) => Some(match serde_json::from_str(&text) {
            Ok(AttachEvent::Exit { exit_code }) => Ok(ExecutionEvent::Exited { exit_code }),
            Ok(AttachEvent::Error { message }) => Ok(ExecutionEvent::Error { message }),
            Err(error) => Err(unexpected(error.to_string())),
        }),
        _ => None,
    }
}

fn disconnected(at: &str, source: SocketError) -> ClientError {
    ClientError::Disconnected {
        at: at.to_owned(),
        source: Box::new(source),
    }
}
