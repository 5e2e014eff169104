//! A client of the CRI, whose messages are JSON values. It reads their fields from
//! `api.proto`, the unchanged protocol of Kubernetes, from the crate k8s-cri 0.11.0.

use std::io::Cursor;
use std::path::Path;

use h2::client::SendRequest;
use http::{Request, header};
use protobuf::reflect::{FileDescriptor, MessageDescriptor};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::common::TIMEOUT;

/// The flag and the length before a message of gRPC.
const PREFIX_BYTES: usize = 5;

/// A connection to the CRI plugin of containerd.
pub(crate) struct CriClient {
    tokio_runtime: Runtime,
    requests: SendRequest<Cursor<Vec<u8>>>,
    protocol: FileDescriptor,
}

impl CriClient {
    /// Connects to the socket of containerd.
    pub(crate) fn connect(socket: &Path) -> Self {
        let tokio_runtime = Runtime::new().unwrap();
        let requests = tokio_runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.unwrap();
            let (requests, connection) =
                h2::client::Builder::new().handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self {
            tokio_runtime,
            requests,
            protocol: protocol(),
        }
    }

    /// Calls a method of a service, and returns the response.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, request: &Value) -> Value {
        let response = self.try_call(method, request);
        response.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Calls a method; an error is that of the service.
    pub(crate) fn try_call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let mut services = self.protocol.services();
        let service = services.find(|service| {
            let mut methods = service.methods();
            methods.any(|known| known.proto().name() == method)
        });
        let service = service.expect("a method of the CRI");
        let path = format!("/runtime.v1.{}/{method}", service.proto().name());
        let request = protobuf_json_mapping::parse_dyn_from_str(
            &self.message(&format!("{method}Request")),
            &request.to_string(),
        )
        .unwrap();
        let request = request.write_to_bytes_dyn().unwrap();
        let exchange = exchange(self.requests.clone(), &path, &request);
        let response = self
            .tokio_runtime
            .block_on(async { timeout(TIMEOUT, exchange).await });
        let response = response.unwrap()?;
        let message = self.message(&format!("{method}Response"));
        let response = message.parse_from_bytes(&response).unwrap();
        let response = protobuf_json_mapping::print_to_string(&*response).unwrap();
        Ok(serde_json::from_str(&response).unwrap())
    }

    fn message(&self, name: &str) -> MessageDescriptor {
        self.protocol
            .message_by_package_relative_name(name)
            .unwrap()
    }
}

fn protocol() -> FileDescriptor {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cri");
    let mut parser = protobuf_parse::Parser::new();
    let file = format!("{dir}/api.proto");
    let files = parser.pure().include(dir).input(file).file_descriptor_set();
    let file = files.unwrap().file.remove(0);
    FileDescriptor::new_dynamic(file, &[]).unwrap()
}

/// Sends a request, and returns the response.
async fn exchange(
    requests: SendRequest<Cursor<Vec<u8>>>,
    path: &str,
    message: &[u8],
) -> Result<Vec<u8>, String> {
    let request = Request::post(format!("http://containerd{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())
        .unwrap();
    let mut requests = requests.ready().await.unwrap();
    let (response, mut stream) = requests.send_request(request, false).unwrap();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0], &length[..], message].concat();
    stream.send_data(Cursor::new(body), true).unwrap();

    let response = response.await.unwrap();
    let headers = response.headers().clone();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        bytes.extend_from_slice(&chunk);
        body.flow_control().release_capacity(chunk.len()).unwrap();
    }
    // A response that is only an error has no trailers.
    let trailers = body.trailers().await.unwrap().unwrap_or(headers);
    if trailers["grpc-status"] == "0" {
        return Ok(bytes.split_off(PREFIX_BYTES));
    }
    Err(String::from_utf8_lossy(trailers["grpc-message"].as_bytes()).into_owned())
}
