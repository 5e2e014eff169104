//! Carries out requests to the engine. Each can take seconds, during which the hub serves its clients.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;

use vmm_engine::Payload;
use vmm_protocol::frames::{
    Connection, Frame, FrameReader, HostMessage, PayloadMessage, RequestError, RequestErrorKind,
    Strictness,
};

use super::relay::PayloadConnection;
use crate::exit_reporter::ExitReporter;

/// Starts the thread that carries out the requests, one at a time and in their order, and connects to it.
pub(super) fn connect(reporter: &Arc<ExitReporter>) -> io::Result<PayloadConnection> {
    let (hub, thread) = UnixStream::pair()?;
    let connection = Connection::new(hub.into(), Strictness::Strict)?;
    let reporter = Arc::clone(reporter);
    thread::Builder::new()
        .name("shim-engine".to_owned())
        .spawn(move || {
            // The hub notices that the thread has ended.
            if panic::catch_unwind(AssertUnwindSafe(|| serve(&thread, &reporter))).is_err() {
                reporter.exit_with_panic();
            }
        })?;
    Ok(connection)
}

fn serve(mut hub: &UnixStream, reporter: &ExitReporter) -> io::Result<()> {
    let mut reader = FrameReader::new(Strictness::Strict);
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = reader.next_frame().map_err(io::Error::other)? {
            let Frame { stream, message } = frame;
            let result = reporter
                .started_payload()
                .and_then(|payload| carry_out(payload, &message));
            let response = result.unwrap_or_else(PayloadMessage::Error);
            let mut wire = Vec::new();
            if let Err(error) = Frame::new(stream, response).encode(&mut wire) {
                let error = RequestError::new(RequestErrorKind::Failed, error.to_string());
                let encoded = Frame::new(stream, PayloadMessage::Error(error)).encode(&mut wire);
                encoded.map_err(io::Error::other)?;
            }
            hub.write_all(&wire)?;
        }
        match hub.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => reader.push(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn carry_out(payload: &dyn Payload, request: &HostMessage) -> Result<PayloadMessage, RequestError> {
    let pause = |name| {
        let pause = payload.pause();
        pause.ok_or_else(|| RequestError::unsupported(name))
    };
    match request {
        HostMessage::Pause => pause("pause")?.pause().map(|()| PayloadMessage::Done),
        HostMessage::Resume => pause("resume")?.resume().map(|()| PayloadMessage::Done),
        HostMessage::Call { request } => {
            let calls = payload.calls();
            let calls = calls.ok_or_else(|| RequestError::unsupported("call"))?;
            let result = calls.call(request)?;
            Ok(PayloadMessage::CallResult { result })
        }
        _ => Err(RequestError::unsupported("this request")),
    }
}
