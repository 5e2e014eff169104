use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Drops the payload of a caught panic. Its `drop` may panic too.
pub(crate) fn drop_panic_payload(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Leaks this one, because its `drop` may panic again.
        mem::forget(second);
    }
}
