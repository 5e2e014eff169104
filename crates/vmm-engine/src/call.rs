use serde_json::Value;
use vmm_agent::RequestError;

/// A payload with requests that only its engine knows. The engine defines their form.
pub trait Call {
    /// Carries out a request, and returns its result. The requests of all clients wait for this method,
    /// which must return within a few seconds.
    ///
    /// # Errors
    ///
    /// [`RequestError`] with the kind `Invalid` for a request that the engine does not know, and with the
    /// cause for one that has failed.
    fn call(&self, request: &Value) -> Result<Value, RequestError>;
}
