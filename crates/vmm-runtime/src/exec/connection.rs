use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use vmm_protocol::BoxDir;
use vmm_protocol::frames::{
    Frame, FrameError, FrameReader, HostMessage, PayloadMessage, Strictness, VERSION,
};

use super::ExecError;

/// How long a shim may take to respond.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the shim of a box.
#[derive(Debug)]
pub(crate) struct ShimConnection {
    pub(super) input: FrameInput,
    pub(super) output: FrameOutput,
    /// Whether the shim still has to respond to the greeting.
    awaits_ready: bool,
}

/// What the shim sends.
#[derive(Debug)]
pub(super) struct FrameInput {
    socket: OwnedReadHalf,
    reader: FrameReader,
}

/// What the shim receives.
#[derive(Debug)]
pub(super) struct FrameOutput {
    socket: OwnedWriteHalf,
    pending: Vec<u8>,
}

impl ShimConnection {
    /// Connects to the shim of the box. The greeting is sent with the first request, so that both take one
    /// round trip.
    pub(crate) async fn open(dir: &BoxDir) -> Result<Self, ExecError> {
        let path = dir.control_socket_path();
        let socket = connect(dir)
            .await
            .map_err(|source| ExecError::Connect { path, source })?;
        let mut connection = Self::new(socket);
        let hello = HostMessage::Hello { version: VERSION };
        connection.output.push(0, hello)?;
        connection.awaits_ready = true;
        Ok(connection)
    }

    pub(super) fn new(socket: UnixStream) -> Self {
        let (read, write) = socket.into_split();
        Self {
            input: FrameInput {
                socket: read,
                reader: FrameReader::new(Strictness::Strict),
            },
            output: FrameOutput {
                socket: write,
                pending: Vec::new(),
            },
            awaits_ready: false,
        }
    }

    /// Sends a request, and returns the next message of the shim. A shim that has been stopped, or
    /// whose guest does not respond, is an error after a while.
    pub(crate) async fn request(
        &mut self,
        stream: u32,
        request: HostMessage,
    ) -> Result<PayloadMessage, ExecError> {
        let response = timeout(REQUEST_TIMEOUT, self.exchange(stream, request)).await;
        response.unwrap_or(Err(ExecError::Timeout))
    }

    /// Returns the message that follows the response to a request.
    pub(super) async fn next_response(&mut self) -> Result<PayloadMessage, ExecError> {
        let response = timeout(REQUEST_TIMEOUT, self.response()).await;
        response.unwrap_or(Err(ExecError::Timeout))
    }

    async fn exchange(
        &mut self,
        stream: u32,
        request: HostMessage,
    ) -> Result<PayloadMessage, ExecError> {
        self.output.push(stream, request)?;
        while self.output.has_pending() {
            self.output
                .flush()
                .await
                .map_err(|_| ExecError::Interrupted)?;
        }
        if self.awaits_ready {
            match self.response().await? {
                PayloadMessage::Ready {
                    version: VERSION, ..
                } => self.awaits_ready = false,
                PayloadMessage::Ready { version, .. } => {
                    let (shim, runtime) = (version, VERSION);
                    return Err(ExecError::Version { shim, runtime });
                }
                _ => return Err(ExecError::Interrupted),
            }
        }
        self.response().await
    }

    async fn response(&mut self) -> Result<PayloadMessage, ExecError> {
        let response = self.input.receive().await?;
        match response.ok_or(ExecError::Interrupted)? {
            PayloadMessage::Error(error) => Err(ExecError::Refused(error)),
            message => Ok(message),
        }
    }
}

impl FrameInput {
    /// Receives a message. Returns `None` when the shim has hung up.
    ///
    /// # Cancel safety
    ///
    /// No frame is lost.
    pub(super) async fn receive(&mut self) -> Result<Option<PayloadMessage>, ExecError> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.reader.next_frame() {
                Ok(Some(Frame { message, .. })) => return Ok(Some(message)),
                Ok(None) => {}
                // A message of a later version.
                Err(FrameError::Body(_)) => continue,
                Err(error) => return Err(ExecError::Protocol(error)),
            }
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(length) => self.reader.push(&buffer[..length]),
            }
        }
    }
}

impl FrameOutput {
    pub(super) fn push(&mut self, stream: u32, message: HostMessage) -> Result<(), ExecError> {
        Frame::new(stream, message)
            .encode(&mut self.pending)
            .map_err(ExecError::Protocol)
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes a part of what is pending.
    ///
    /// # Cancel safety
    ///
    /// What has been written is not pending any more.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let length = self.socket.write(&self.pending).await?;
        self.pending.drain(..length);
        Ok(())
    }
}

/// Connects to the socket in the directory, whose path may be longer than that of a socket may be.
async fn connect(dir: &BoxDir) -> io::Result<UnixStream> {
    let path = dir.control_socket_path();
    if path.as_os_str().len() < MAX_SOCKET_PATH {
        return UnixStream::connect(path).await;
    }
    let opened = File::open(dir.path())?;
    let name = vmm_protocol::FILES.control;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd())).await
}

/// The size of `sun_path`, which has a NUL character at its end: unix(7).
const MAX_SOCKET_PATH: usize = 108;

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    // The clock of a paused tokio runtime moves on when all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn a_shim_that_does_not_respond_is_an_error_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let dir = BoxDir::new(dir.path());
        let listener = UnixListener::bind(dir.control_socket_path()).unwrap();
        let client = async {
            let start = tokio::time::Instant::now();
            let mut connection = ShimConnection::open(&dir).await.unwrap();
            let error = connection.request(0, HostMessage::List).await.unwrap_err();
            assert!(matches!(error, ExecError::Timeout), "{error:?}");
            assert!(start.elapsed() >= REQUEST_TIMEOUT);
        };
        // The stream stays open.
        let (accepted, ()) = tokio::join!(listener.accept(), client);
        accepted.unwrap();
    }

    #[tokio::test]
    async fn greeting_and_first_request_take_one_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let dir = BoxDir::new(dir.path());
        let listener = UnixListener::bind(dir.control_socket_path()).unwrap();
        let client = async {
            let mut connection = ShimConnection::open(&dir).await.unwrap();
            for token in [7, 8] {
                let response = connection.request(0, HostMessage::Ping { token }).await;
                assert_eq!(response.unwrap(), PayloadMessage::Pong { token });
            }
        };
        // Responds to nothing before the first request has arrived.
        let shim = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut reader = FrameReader::new(Strictness::Strict);
            let mut responses = Vec::new();
            for _ in 0..3 {
                let request = loop {
                    if let Some(frame) = reader.next_frame::<HostMessage>().unwrap() {
                        break frame.message;
                    }
                    let mut buffer = [0; 256];
                    let length = socket.read(&mut buffer).await.unwrap();
                    reader.push(&buffer[..length]);
                };
                let (version, boot) = (VERSION, Vec::new());
                let (response, is_greeting) = match request {
                    HostMessage::Hello { .. } => (PayloadMessage::Ready { version, boot }, true),
                    HostMessage::Ping { token } => (PayloadMessage::Pong { token }, false),
                    request => panic!("{request:?}"),
                };
                Frame::new(0, response).encode(&mut responses).unwrap();
                if !is_greeting {
                    socket.write_all(&responses).await.unwrap();
                    responses.clear();
                }
            }
        };
        timeout(REQUEST_TIMEOUT, async { tokio::join!(client, shim) })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_shim_of_another_version_is_an_error_with_both_versions() {
        let (here, mut shim) = UnixStream::pair().unwrap();
        let version = VERSION + 1;
        let boot = Vec::new();
        let mut wire = Vec::new();
        Frame::new(0, PayloadMessage::Ready { version, boot })
            .encode(&mut wire)
            .unwrap();
        shim.write_all(&wire).await.unwrap();
        let mut connection = ShimConnection::new(here);
        connection.awaits_ready = true;
        let error = connection.request(0, HostMessage::List).await.unwrap_err();
        let ExecError::Version { shim, runtime } = error else {
            panic!("{error:?}");
        };
        assert_eq!((shim, runtime), (version, VERSION));
    }
}
