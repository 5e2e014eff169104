use std::ffi::c_char;
use std::ptr;

/// A list of C strings in one allocation, built before it is frozen.
#[derive(Default)]
pub(crate) struct CStrings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

/// A string contains a NUL byte.
#[derive(Debug)]
pub(crate) struct NulByte;

impl CStrings {
    /// Appends one string, the concatenation of `parts`.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> Result<(), NulByte> {
        if parts.iter().any(|part| part.contains(&0)) {
            return Err(NulByte);
        }
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        Ok(())
    }

    pub(crate) fn freeze(self) -> CStringArray {
        let base = self.bytes.as_ptr();
        let pointers = self
            .starts
            .iter()
            .map(|&start| base.wrapping_add(start).cast::<c_char>())
            .chain([ptr::null()])
            .collect();
        CStringArray {
            pointers,
            _bytes: self.bytes,
        }
    }
}

/// An array of C strings as `execve(2)` takes it, with a null pointer at its end.
pub(crate) struct CStringArray {
    pointers: Vec<*const c_char>,
    /// What the pointers point to. It is never changed, so it never moves.
    _bytes: Vec<u8>,
}

impl CStringArray {
    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// Returns the pointers without the null pointer.
    pub(crate) fn iter(&self) -> impl Iterator<Item = *const c_char> + '_ {
        self.pointers
            .iter()
            .copied()
            .take_while(|pointer| !pointer.is_null())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_null_terminated_and_in_order() {
        let mut strings = CStrings::default();
        strings.push(&[b"PATH", b"=", b"/bin"]).unwrap();
        strings.push(&[b""]).unwrap();
        let array = strings.freeze();

        assert_eq!(array._bytes, b"PATH=/bin\0\0");
        let starts: Vec<_> = array.iter().map(|start| start.cast::<u8>()).collect();
        let base = array._bytes.as_ptr();
        assert_eq!(starts, [base, base.wrapping_add(10)]);
        assert_eq!(array.pointers.len(), 3);
        assert!(array.pointers[2].is_null());
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(CStrings::default().push(&[b"a", b"b\0c"]).is_err());
    }
}
