use std::io;
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

pub(crate) fn spawn_thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("shim-reaper".to_owned());
    thread.spawn(run).map(drop)
}

/// Runs blocking code on a thread of its own, to the end even if the future is dropped. If no thread
/// can be started, runs it on the calling thread.
///
/// The thread is started in the first poll.
pub(crate) async fn run_on_thread<T: Send + 'static>(
    run: impl Fn() -> T + Send + Sync + 'static,
) -> T {
    let (sender, receiver) = oneshot::channel();
    let run = Arc::new(run);
    let on_thread = Arc::clone(&run);
    let spawned = spawn_thread(move || {
        // Fails if the future has been dropped.
        let _ = sender.send(on_thread());
    });
    match spawned {
        Ok(()) => match receiver.await {
            Ok(value) => value,
            // The code panicked, and does so again in the task of the caller.
            Err(_) => run(),
        },
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread; the calling thread blocks instead");
            run()
        }
    }
}
