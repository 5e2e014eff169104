use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use crate::panic_payload::drop_panic_payload;

/// Wakes tasks. A waker that panics does not prevent the others. The caller must not hold a lock.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            drop_panic_payload(payload);
            tracing::error!("a waker panicked; its task may miss an exit");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            // Leaked, so without memory.
            resume_unwind(Box::new(()));
        }
    }

    struct Panicking;

    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            resume_unwind(Box::new(PanicsOnDrop));
        }
    }

    struct Flag(Arc<AtomicBool>);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn a_panic_whose_payload_panics_does_not_prevent_the_other_wakers() {
        let woken = Arc::new(AtomicBool::new(false));
        let other = Waker::from(Arc::new(Flag(Arc::clone(&woken))));
        wake_all([Arc::new(Panicking).into(), other]);
        assert!(woken.load(Relaxed));
    }
}
