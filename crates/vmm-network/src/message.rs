//! Messages of `rtnetlink(7)`: a header, a fixed part that depends on the type, and attributes.

/// The length of the header: `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

/// The length of the header of an attribute: `struct nlattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// The flags in the type of an attribute, which the kernel sets for some.
const ATTRIBUTE_FLAGS: u16 = (libc::NLA_F_NESTED | libc::NLA_F_NET_BYTEORDER) as u16;

/// A message to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Creates a message of a type, with `NLM_F_` flags and the fixed part.
    pub(crate) fn new(kind: u16, flags: i32, fixed: &[&[u8]]) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        // The length and the sequence number follow when the message is complete; the port is 0.
        let mut bytes = [0; HEADER_LEN].to_vec();
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        fixed.iter().for_each(|part| bytes.extend(*part));
        Self { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |mut message| {
            message.bytes.extend(value);
            message
        })
    }

    /// Adds an attribute that has attributes.
    pub(crate) fn nested(mut self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE_HEADER_LEN]);
        let mut message = build(self);
        let len = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        message.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        message.bytes.resize(aligned(message.bytes.len()), 0);
        message
    }

    /// Returns the bytes of the message with this sequence number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Iterates over the attributes in the bytes that follow the fixed part of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the attribute of this type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & !ATTRIBUTE_FLAGS;
        let value = self.0.get(ATTRIBUTE_HEADER_LEN..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Rounds a length up to the alignment of messages and attributes.
pub(crate) fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_message() {
        let message = Message::new(18, 0, &[&[1, 2, 3, 4]])
            .attribute(3, b"eth0\0")
            .nested(26, |message| message.attribute(10, &7_u32.to_ne_bytes()));
        let bytes = message.finish(5);
        assert_eq!(read_u32(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(read_u16(&bytes, 4), Some(18));
        assert_eq!(read_u32(&bytes, 8), Some(5));
        let attributes = Attributes(&bytes[HEADER_LEN + 4..]);
        assert_eq!(attributes.find(3), Some(&b"eth0\0"[..]));
        let nested = attributes.find(26).map(Attributes).unwrap();
        assert_eq!(nested.find(10), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attributes.find(4), None);
    }

    #[test]
    fn an_attribute_that_is_too_long_or_too_short_ends_the_list() {
        for bytes in [&[9, 0, 1, 0, 1, 2, 3, 4][..], &[3, 0, 1, 0], &[1], &[]] {
            assert_eq!(Attributes(bytes).next(), None);
        }
    }
}
