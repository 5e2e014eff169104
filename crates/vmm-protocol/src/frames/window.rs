use super::INITIAL_CREDIT;

/// How many bytes one end of a stream may still send.
///
/// The sender calls [`take`](Self::take) before it sends data, and [`grant`](Self::grant) when
/// credit arrives. While the window is empty, it does not read from the source of the data.
#[derive(Debug)]
pub struct Window {
    bytes: u32,
}

impl Window {
    /// Creates the window of a new stream, with [`INITIAL_CREDIT`] bytes.
    pub fn new() -> Self {
        Self {
            bytes: INITIAL_CREDIT,
        }
    }

    /// Creates a window with this number of bytes.
    pub fn with_bytes(bytes: u32) -> Self {
        Self { bytes }
    }

    /// Takes up to `wanted` bytes, and returns how many may be sent.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.bytes);
        self.bytes -= taken;
        taken as usize
    }

    /// Adds bytes that the other end has granted.
    pub fn grant(&mut self, bytes: u32) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Returns how many bytes may be sent.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}
