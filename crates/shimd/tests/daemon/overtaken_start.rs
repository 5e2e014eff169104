use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use vmm_runtime::testing::PerTestBoxHome;

/// A way to a daemon on which an order to start a box arrives after one to stop it was answered.
#[derive(Default)]
pub(crate) struct OvertakenStart {
    held: OnceLock<()>,
    stopped: OnceLock<()>,
}

impl OvertakenStart {
    /// From the socket of one home to that of another, as long as the test runs.
    pub(crate) fn between(clients: &PerTestBoxHome, daemons: &PerTestBoxHome) -> Arc<Self> {
        let this = Arc::<Self>::default();
        let way = Arc::clone(&this);
        let listener = UnixListener::bind(clients.path().join("shimd.sock")).unwrap();
        let socket = daemons.path().join("shimd.sock");
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, daemon) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
                way.carry(&client, &daemon);
            }
        });
        this
    }

    /// Whether an order to start is on its way.
    pub(crate) fn is_held(&self) -> bool {
        self.held.get().is_some()
    }

    fn carry(self: &Arc<Self>, client: &UnixStream, daemon: &UnixStream) {
        let asks_to_stop = Arc::new(AtomicBool::new(false));
        let (this, asks) = (Arc::clone(self), Arc::clone(&asks_to_stop));
        copy(client, daemon, move |request| {
            asks.fetch_or(is_order("stop", request), Ordering::SeqCst);
            if is_order("start", request) {
                let _ = this.held.set(());
                this.stopped.wait();
            }
        });
        let this = Arc::clone(self);
        copy(daemon, client, move |_| {
            if asks_to_stop.load(Ordering::SeqCst) {
                let _ = this.stopped.set(());
            }
        });
    }
}

fn is_order(name: &str, request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let line = request.lines().next().unwrap_or_default();
    line.ends_with(&format!("/{name} HTTP/1.1"))
}

/// Shows each piece before it is handed on: the head of a request is the beginning of one.
fn copy(from: &UnixStream, to: &UnixStream, mut show: impl FnMut(&[u8]) + Send + 'static) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || -> io::Result<()> {
        let mut piece = [0; 1 << 14];
        loop {
            match from.read(&mut piece)? {
                0 => return to.shutdown(Shutdown::Write),
                length => {
                    show(&piece[..length]);
                    to.write_all(&piece[..length])?;
                }
            }
        }
    });
}
