use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use vmm_runtime::testing::PerTestBoxHome;

/// A proxy in front of a daemon that delays a request to start a box until a request to stop the
/// box has been answered.
#[derive(Default)]
pub(crate) struct DelayedStart {
    delayed: OnceLock<()>,
    stopped: OnceLock<()>,
}

impl DelayedStart {
    /// Listens at the socket in one home and forwards to the socket in another, until the test ends.
    pub(crate) fn between(clients: &PerTestBoxHome, daemons: &PerTestBoxHome) -> Arc<Self> {
        let this = Arc::<Self>::default();
        let proxy = Arc::clone(&this);
        let listener = UnixListener::bind(clients.path().join("shimd.sock")).unwrap();
        let socket = daemons.path().join("shimd.sock");
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, daemon) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
                proxy.forward(&client, &daemon);
            }
        });
        this
    }

    /// Returns true once a request to start is being delayed.
    pub(crate) fn is_delayed(&self) -> bool {
        self.delayed.get().is_some()
    }

    fn forward(self: &Arc<Self>, client: &UnixStream, daemon: &UnixStream) {
        let is_stop = Arc::new(AtomicBool::new(false));
        let (this, is_stop_request) = (Arc::clone(self), Arc::clone(&is_stop));
        copy(client, daemon, move |request| {
            is_stop_request.fetch_or(is_request("stop", request), Ordering::SeqCst);
            if is_request("start", request) {
                let _ = this.delayed.set(());
                this.stopped.wait();
            }
        });
        let this = Arc::clone(self);
        copy(daemon, client, move |_| {
            if is_stop.load(Ordering::SeqCst) {
                let _ = this.stopped.set(());
            }
        });
    }
}

fn is_request(name: &str, request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let line = request.lines().next().unwrap_or_default();
    line.ends_with(&format!("/{name} HTTP/1.1"))
}

/// Copies a stream in a thread, and passes each chunk to `inspect` first. The head of a request is
/// at the start of a chunk.
fn copy(from: &UnixStream, to: &UnixStream, mut inspect: impl FnMut(&[u8]) + Send + 'static) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || -> io::Result<()> {
        let mut chunk = [0; 1 << 14];
        loop {
            match from.read(&mut chunk)? {
                0 => return to.shutdown(Shutdown::Write),
                length => {
                    inspect(&chunk[..length]);
                    to.write_all(&chunk[..length])?;
                }
            }
        }
    });
}
