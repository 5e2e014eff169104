use serde::{Deserialize, Serialize};

/// Limits for the output of a payload that a box keeps in `console.log` and its rotated files.
///
/// ```
/// use vmm_protocol::ConsoleOptions;
///
/// let options = ConsoleOptions::default().max_bytes(1 << 20).files(2);
/// assert_eq!((options.max_bytes, options.files), (1 << 20, 2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ConsoleOptions {
    /// The maximum size of one file, in bytes: 10 MiB by default, at least 4 KiB.
    pub max_bytes: u64,
    /// The number of files, including `console.log`: 3 by default, at least 1.
    pub files: u8,
}

/// Smaller files would be rotated at every write.
const MIN_FILE_BYTES: u64 = 4096;

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

    /// Returns true if both values are at least their minimum.
    pub fn is_valid(&self) -> bool {
        self.max_bytes >= MIN_FILE_BYTES && self.files > 0
    }
}
