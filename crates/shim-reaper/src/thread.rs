use std::io;
use std::thread;

pub(crate) fn spawn_thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("shim-reaper".to_owned());
    thread.spawn(run).map(drop)
}
