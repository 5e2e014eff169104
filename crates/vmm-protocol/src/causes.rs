use std::error::Error;
use std::iter;

/// Returns the message of an error followed by those of its causes, separated by colons.
///
/// Use it where an error becomes text: in a log, a record, or a response. The message of an error
/// of this crate does not contain the cause, which [`source`](Error::source) returns.
///
/// Skips a cause that the text already contains: errors of other libraries may repeat theirs.
///
/// ```
/// use std::io;
/// use vmm_protocol::{FileError, with_causes};
///
/// let full = io::Error::from(io::ErrorKind::StorageFull);
/// let error = FileError::new("write", "/box/exit", full);
/// assert_eq!(error.to_string(), "cannot write /box/exit");
/// assert_eq!(with_causes(&error), "cannot write /box/exit: no storage space");
/// ```
pub fn with_causes(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}
