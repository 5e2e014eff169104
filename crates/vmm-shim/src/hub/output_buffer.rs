use std::collections::VecDeque;

use vmm_protocol::frames::{MAX_BODY, PayloadMessage};

/// Output that waits for a client.
///
/// Memory grows with the bytes, and not with the frames that brought them: a command may write one
/// byte at a time.
#[derive(Debug, Default)]
pub(super) struct OutputBuffer {
    bytes: VecDeque<u8>,
    /// Which of the bytes are stdout and stderr. Neighbours differ.
    runs: VecDeque<Run>,
}

#[derive(Debug)]
struct Run {
    is_stderr: bool,
    len: u32,
}

impl OutputBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the number of bytes of output.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns how much memory the output takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.runs.len() * size_of::<Run>()
    }

    pub(super) fn push(&mut self, is_stderr: bool, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match self.runs.back_mut() {
            _ if len == 0 => {}
            Some(run) if run.is_stderr == is_stderr => run.len += len,
            _ => self.runs.push_back(Run { is_stderr, len }),
        }
        self.bytes.extend(data);
    }

    /// Removes up to `max` bytes, and at most what a frame holds. Returns `None` if there are none.
    pub(super) fn pop(&mut self, max: usize) -> Option<PayloadMessage> {
        let max = u32::try_from(max.min(MAX_BODY)).unwrap_or(u32::MAX);
        let run = self.runs.front_mut().filter(|_| max > 0)?;
        let count = run.len.min(max);
        run.len -= count;
        let is_stderr = run.is_stderr;
        if run.len == 0 {
            self.runs.pop_front();
        }
        let data = self.bytes.drain(..count as usize).collect();
        Some(if is_stderr {
            PayloadMessage::Stderr(data)
        } else {
            PayloadMessage::Stdout(data)
        })
    }

    /// Drops the oldest output until the rest takes at most this much memory. Returns how many bytes
    /// of output it has dropped.
    pub(super) fn shrink_to(&mut self, memory: usize) -> usize {
        let before = self.len();
        while self.memory() > memory {
            self.pop(self.memory() - memory);
        }
        self.bytes.shrink_to(memory);
        self.runs.shrink_to(memory / size_of::<Run>());
        before - self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_in_order_and_small_writes_share_a_frame() {
        let mut buffer = OutputBuffer::default();
        for byte in b"abc" {
            buffer.push(false, &[*byte]);
        }
        buffer.push(true, b"error");
        buffer.push(true, b"");
        buffer.push(false, b"d");
        assert_eq!(buffer.len(), 9);
        assert_eq!(buffer.pop(0), None);
        assert_eq!(buffer.pop(2), Some(PayloadMessage::Stdout(b"ab".to_vec())));
        let popped: Vec<_> = std::iter::from_fn(|| buffer.pop(100)).collect();
        let expected = [
            PayloadMessage::Stdout(b"c".to_vec()),
            PayloadMessage::Stderr(b"error".to_vec()),
            PayloadMessage::Stdout(b"d".to_vec()),
        ];
        assert_eq!(popped, expected);
        assert!(buffer.is_empty());
    }

    #[test]
    fn memory_is_bounded_although_each_write_is_one_byte() {
        let mut buffer = OutputBuffer::default();
        for n in 0..1000 {
            buffer.push(n % 2 == 0, b"x");
        }
        let dropped = buffer.shrink_to(100);
        assert!(buffer.memory() <= 100, "{buffer:?}");
        assert_eq!(buffer.len() + dropped, 1000);
        assert!(!buffer.is_empty());
    }
}
