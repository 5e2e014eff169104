use std::cell::RefCell;
use std::mem;

use tokio::process::Child;

/// A child of tokio that the reaper reaps through its `Child`.
///
/// tokio knows a child by its pid only. A `Child` that is dropped kills it if `kill_on_drop` is set,
/// and otherwise goes to a queue that waits for it whenever SIGCHLD arrives. If the reaper had
/// reaped the child in another way, that pid could be another process by then.
#[derive(Debug)]
pub(crate) struct TokioChild(Box<RefCell<Option<Child>>>);

impl TokioChild {
    pub(crate) fn new(child: Child) -> Self {
        Self(Box::new(RefCell::new(Some(child))))
    }

    /// Reaps the child, which is a zombie.
    pub(crate) fn reap(&self) {
        let mut child = self.0.borrow_mut();
        let status = child.as_mut().map(Child::try_wait);
        if matches!(status, Some(Ok(Some(_)))) {
            *child = None;
        }
    }

    /// Returns whether [`reap`](Self::reap) has reaped the child.
    pub(crate) fn is_reaped(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Returns a running child to tokio.
    pub(crate) fn release(self) {
        drop(self.0.take());
    }
}

impl Drop for TokioChild {
    fn drop(&mut self) {
        // Another wait has reaped the child. Its descriptor stays open.
        mem::forget(self.0.take());
    }
}
