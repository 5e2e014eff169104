use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use futures::executor::block_on_stream;
use shim_reaper::{Exits, ShimExit};

/// A thread that reads a stream of exits to its end.
pub(crate) struct Reader {
    read: Arc<Mutex<Vec<ShimExit>>>,
    ended: mpsc::Receiver<()>,
}

impl Reader {
    pub(crate) fn start(exits: Exits) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let into = Arc::clone(&read);
        thread::spawn(move || {
            block_on_stream(exits).for_each(|exit| into.lock().unwrap().push(exit));
            let _ = end.send(());
        });
        Self { read, ended }
    }

    /// All that was read, and whether the stream has ended.
    pub(crate) fn finish(self) -> (Vec<ShimExit>, bool) {
        let ended = self.ended.recv_timeout(Duration::from_secs(10)).is_ok();
        (std::mem::take(&mut self.read.lock().unwrap()), ended)
    }
}
