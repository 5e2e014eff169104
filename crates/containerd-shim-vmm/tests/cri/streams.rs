//! A client of the streaming server of the CRI plugin, as a kubelet is, but over a WebSocket in place of SPDY.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;

use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::client::CriClient;
use crate::common::TIMEOUT;
use crate::common::namespace::TestNamespace;

/// The protocol of Kubernetes: a message begins with the number of its channel.
const PROTOCOL: HeaderValue = HeaderValue::from_static("v4.channel.k8s.io");

const STDIN: u8 = 0;
/// Of a port, in both directions.
pub(crate) const DATA: u8 = 0;
/// Of a port.
pub(crate) const ERROR: u8 = 1;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// The streams of a process, or of a port.
pub(crate) struct Streams {
    socket: WebSocket<TcpStream>,
    /// By channel.
    received: BTreeMap<u8, Vec<u8>>,
}

impl Streams {
    /// Requests a URL with `Exec` or `Attach`, and connects to it.
    pub(crate) fn open(client: &CriClient, method: &str, request: &Value) -> Self {
        Self::open_with(client, method, request, |address| {
            TcpStream::connect(address).unwrap()
        })
    }

    /// Opens the stream of a port of a pod. containerd runs in the network namespace `host`.
    pub(crate) fn of_port(client: &CriClient, host: &TestNamespace, pod: &str, port: u16) -> Self {
        let request = json!({"pod_sandbox_id": pod, "port": [port]});
        Self::open_with(client, "PortForward", &request, |address| {
            connect_in(host, address)
        })
    }

    fn open_with(
        client: &CriClient,
        method: &str,
        request: &Value,
        connect: impl FnOnce(&str) -> TcpStream,
    ) -> Self {
        let response = client.call(method, request);
        let url = response["url"].as_str().expect("a URL");
        let url = url.replacen("http:", "ws:", 1);
        let mut request = url.into_client_request().unwrap();
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
        let stream = connect(request.uri().authority().unwrap().as_str());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let (socket, _) = tungstenite::client(request, stream).unwrap();
        Self {
            socket,
            received: BTreeMap::new(),
        }
    }

    /// Writes to the stdin of a process, or to a port.
    pub(crate) fn write(&mut self, data: &[u8]) {
        self.send(STDIN, data);
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&mut self, rows: u16, cols: u16) {
        let size = json!({"Width": cols, "Height": rows});
        self.send(RESIZE, size.to_string().as_bytes());
    }

    fn send(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        self.socket.send(Message::binary(message)).unwrap();
    }

    /// Waits until a channel has received a text.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, channel: u8, text: &str) {
        while !self.text(channel).contains(text) {
            let is_open = self.receive();
            assert!(is_open, "{text:?} is not in {:?}", self.text(channel));
        }
    }

    /// Returns what a channel has received.
    pub(crate) fn text(&self, channel: u8) -> String {
        let received = self.received.get(&channel);
        let received = received.map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(received).into_owned()
    }

    /// Waits for the end of the process, and returns its exit code.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> i32 {
        while self.text(STATUS).is_empty() {
            assert!(self.receive(), "the connection ends without a status");
        }
        let status: Value = serde_json::from_str(&self.text(STATUS)).unwrap();
        if status["status"] == "Success" {
            return 0;
        }
        let code = &status["details"]["causes"][0];
        assert_eq!(code["reason"], "ExitCode", "{status}");
        code["message"].as_str().unwrap().parse().unwrap()
    }

    /// Receives a message. Returns false if the server has closed the connection.
    fn receive(&mut self) -> bool {
        match self.socket.read().unwrap() {
            Message::Binary(message) => {
                let (channel, data) = message.split_first().expect("a channel");
                self.received.entry(*channel).or_default().extend(data);
                true
            }
            Message::Close(_) => false,
            other => panic!("{other:?}"),
        }
    }
}

/// Connects in a network namespace.
fn connect_in(namespace: &TestNamespace, address: &str) -> TcpStream {
    let file = File::open(namespace.path()).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).unwrap();
            TcpStream::connect(address).unwrap()
        });
        thread.join().unwrap()
    })
}
