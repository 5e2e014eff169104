use std::thread;

/// Waits to be stopped: SIGTERM ends it, as it does any program that has not said otherwise.
pub(crate) fn idle() -> ! {
    loop {
        thread::park();
    }
}
