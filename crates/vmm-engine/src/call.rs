use serde_json::Value;
use vmm_protocol::frames::RequestError;

/// A payload with requests that only its engine knows. The engine defines their form.
pub trait Call {
    /// Carries out a request, and returns its result. The shim calls this method and those of
    /// [`Pause`](crate::Pause) one at a time, in the order of the requests. A client waits up to 30 s.
    ///
    /// # Errors
    ///
    /// [`RequestError`] with the kind `Invalid` for a request that the engine does not know, and with the
    /// cause for one that has failed.
    fn call(&self, request: &Value) -> Result<Value, RequestError>;
}
