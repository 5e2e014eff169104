//! The synchronization primitives that the models of [`crate::models`] replace by those of loom.

#[cfg(not(all(test, shim_reaper_loom)))]
mod primitives {
    pub(crate) use std::sync::{Mutex, MutexGuard};

    pub(crate) use futures::task::AtomicWaker;
}

#[cfg(all(test, shim_reaper_loom))]
mod primitives {
    use std::sync::PoisonError;
    use std::task::Waker;

    pub(crate) use loom::sync::{Mutex, MutexGuard};

    /// The part of `futures::task::AtomicWaker` that this crate uses.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicWaker(Mutex<Option<Waker>>);

    impl AtomicWaker {
        pub(crate) fn register(&self, waker: &Waker) {
            drop(self.replace(Some(waker.clone())));
        }

        pub(crate) fn take(&self) -> Option<Waker> {
            let waker = self.replace(None);
            // Makes loom also order what the caller does next, such as dropping an `Arc`.
            drop(self.0.lock());
            waker
        }

        fn replace(&self, waker: Option<Waker>) -> Option<Waker> {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *slot, waker)
        }
    }
}

pub(crate) use primitives::{AtomicWaker, Mutex, MutexGuard};
