use serde::{Deserialize, Serialize};

/// How much of a payload's output a box keeps, in `console.log` and the files it is rotated to.
///
/// ```
/// use vmm_shim::ConsoleOptions;
///
/// let options = ConsoleOptions::default().max_bytes(1 << 20).files(2);
/// assert_eq!((options.max_bytes, options.files), (1 << 20, 2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ConsoleOptions {
    /// The largest size of one file, in bytes: 10 MiB by default, at least 4 KiB.
    pub max_bytes: u64,
    /// The number of files, `console.log` included: 3 by default, at least 1.
    pub files: u8,
}

/// Keeps a payload that prints without end from rotating files all the time.
const MIN_BYTES: u64 = 4096;

impl Default for ConsoleOptions {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            files: 3,
        }
    }
}

impl ConsoleOptions {
    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets [`files`](Self::files).
    #[must_use]
    pub fn files(mut self, count: u8) -> Self {
        self.files = count;
        self
    }

    /// Whether both are at least what they have to be.
    pub fn is_valid(&self) -> bool {
        self.max_bytes >= MIN_BYTES && self.files > 0
    }
}
