use std::fmt;
use std::sync::OnceLock;

use vmm_protocol::frames::RequestError;

/// A payload that can be paused. [`Payload::stop`](crate::Payload::stop) and
/// [`Payload::kill`](crate::Payload::kill) end a paused payload, too.
///
/// The shim calls these methods and [`Call::call`](crate::Call::call) one at a time, in the order of the
/// requests. A client waits up to 30 s.
pub trait Pause {
    /// Freezes the payload. Succeeds if it is already frozen.
    ///
    /// # Errors
    ///
    /// [`RequestError`] of the kind `Unsupported` if the host lacks what a pause needs, such as control
    /// groups of version 2, and of the kind `Failed` with the cause otherwise. The payload then goes on,
    /// unless a virtual machine monitor did not respond in time: its guest can freeze later, which the
    /// [observer](Self::observe) learns.
    fn pause(&self) -> Result<(), RequestError>;

    /// Lets the payload continue. Succeeds if it is not frozen.
    ///
    /// # Errors
    ///
    /// [`RequestError`] of the kind `Failed` with the cause. The payload then stays frozen, with the same
    /// exception.
    fn resume(&self) -> Result<(), RequestError>;

    /// Sets the function that the payload calls with true when it is frozen, and with false when it
    /// continues, whatever the cause. A guest can be paused without a request, for example by an error
    /// of its disk. The shim calls this once, right after the start.
    fn observe(&self, observer: Box<dyn Fn(bool) + Send + Sync>);
}

/// The function of [`Pause::observe`], once it is set.
#[derive(Default)]
pub(crate) struct PauseObserver(OnceLock<Box<dyn Fn(bool) + Send + Sync>>);

impl PauseObserver {
    pub(crate) fn set(&self, observer: Box<dyn Fn(bool) + Send + Sync>) {
        let _ = self.0.set(observer);
    }

    pub(crate) fn notify(&self, is_paused: bool) {
        if let Some(observer) = self.0.get() {
            observer(is_paused);
        }
    }
}

impl fmt::Debug for PauseObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PauseObserver")
    }
}
