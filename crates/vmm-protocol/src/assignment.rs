use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The box that a warm shim gets from its runtime.
///
/// A warm shim reads three lines of JSON from its stdin: when it starts, the
/// [`RuntimeProcess`](crate::RuntimeProcess) that it must not outlive; when a box starts, an
/// `Assignment` and the [`InstanceSpec`](crate::InstanceSpec). From the assignment on, it does what
/// the shim of a box does, with the arguments of one. It ends if its stdin ends before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The id of the box.
    pub id: String,
    /// The box directory.
    pub dir: PathBuf,
}
