//! A client of a shim.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use vmm_protocol::frames::{
    ExecSpec, Execution, Frame, FrameReader, HostMessage, INITIAL_CREDIT, MAX_BODY, PayloadMessage,
    RequestErrorKind, Strictness,
};
use vmm_shim::{Ending, FILES};

use super::{DEADLINE, Shim};

/// A client of a shim, which waits for each response.
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
}

impl Client {
    pub fn connect(shim: &Shim) -> Self {
        let stream = UnixStream::connect(shim.path(FILES.control)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            stream,
            reader: FrameReader::new(Strictness::Strict),
        }
    }

    pub fn send(&mut self, stream: u32, message: HostMessage) {
        self.send_repeated(1, stream, message).unwrap();
    }

    /// Sends the same message many times at once.
    pub fn send_repeated(
        &mut self,
        count: usize,
        stream: u32,
        message: HostMessage,
    ) -> io::Result<()> {
        let mut wire = Vec::new();
        Frame::new(stream, message).encode(&mut wire).unwrap();
        self.stream.write_all(&wire.repeat(count))
    }

    /// Sends the beginning of a frame.
    pub fn send_partial_frame(&mut self) {
        let mut wire = Vec::new();
        let frame = Frame::new(0, HostMessage::Stdin(vec![0; MAX_BODY]));
        frame.encode(&mut wire).unwrap();
        self.try_send_bytes(&wire[..100]).unwrap();
    }

    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Returns another client with the same connection.
    pub fn try_clone(&self) -> Self {
        Self {
            stream: self.stream.try_clone().unwrap(),
            reader: FrameReader::new(Strictness::Strict),
        }
    }

    /// Closes the connection, also for the clones.
    pub fn shut_down(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    pub fn exec(&mut self, stream: u32, id: &str, script: &str) {
        let mut spec = ExecSpec::new(id, ["sh", "-c", script]);
        spec.stdin = true;
        self.send(stream, HostMessage::Exec(spec));
    }

    /// Returns `None` if the shim has hung up.
    pub fn try_receive(&mut self) -> Option<Frame<PayloadMessage>> {
        let mut buffer = [0; 64 << 10];
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.reader.push(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Returns whether the shim closes the connection, in place of a response.
    pub fn is_refused(&mut self) -> bool {
        let mut wire = Vec::new();
        let ping = Frame::new(0, HostMessage::Ping { token: 0 });
        ping.encode(&mut wire).unwrap();
        let sent = self.stream.write_all(&wire);
        sent.is_err() || !matches!(self.stream.read(&mut [0; 64]), Ok(1..))
    }

    /// Returns whether a message waits to be received.
    pub fn has_response(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = recv(self.stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK);
        self.stream.set_nonblocking(false).unwrap();
        peeked != Err(Errno::EAGAIN)
    }

    pub fn receive(&mut self) -> Frame<PayloadMessage> {
        self.try_receive().expect("the shim has hung up")
    }

    /// Returns the output of an execution, what was dropped of it, and its ending.
    pub fn finish(&mut self, stream: u32) -> (String, u64, Ending) {
        let mut output = Vec::new();
        let mut dropped = 0;
        let mut consumed = 0;
        loop {
            let frame = self.receive();
            assert_eq!(frame.stream, stream, "{frame:?}");
            match frame.message {
                PayloadMessage::Stdout(data) | PayloadMessage::Stderr(data) => {
                    consumed += u32::try_from(data.len()).unwrap();
                    if consumed >= INITIAL_CREDIT / 4 {
                        let bytes = std::mem::take(&mut consumed);
                        self.send(stream, HostMessage::Credit { bytes });
                    }
                    output.extend(data);
                }
                PayloadMessage::Dropped { bytes } => dropped += bytes,
                PayloadMessage::Exited { ending } => {
                    return (String::from_utf8(output).unwrap(), dropped, ending);
                }
                PayloadMessage::Started { .. }
                | PayloadMessage::Credit { .. }
                | PayloadMessage::Ended { .. } => {}
                message => panic!("{message:?}"),
            }
        }
    }

    pub fn list(&mut self) -> Vec<Execution> {
        self.send(0, HostMessage::List);
        let mut all = Vec::new();
        loop {
            if let PayloadMessage::Executions { executions, more } = self.receive().message {
                all.extend(executions);
                if !more {
                    return all;
                }
            }
        }
    }

    /// Returns the next message of the stream.
    pub fn response(&mut self, stream: u32) -> PayloadMessage {
        loop {
            let frame = self.receive();
            if frame.stream == stream {
                return frame.message;
            }
        }
    }

    pub fn error(&mut self) -> RequestErrorKind {
        loop {
            if let PayloadMessage::Error(error) = self.receive().message {
                return error.kind;
            }
        }
    }
}
