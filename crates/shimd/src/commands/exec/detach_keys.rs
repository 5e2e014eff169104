const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Finds Ctrl-P Ctrl-Q among the keys for a command.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    has_ctrl_p: bool,
}

impl DetachKeys {
    /// Removes the first of the keys, until it is known whether the second follows. Returns true if
    /// both were pressed; what follows is dropped.
    pub(super) fn filter(&mut self, keys: &mut Vec<u8>) -> bool {
        let mut kept = Vec::with_capacity(keys.len() + 1);
        let mut is_detach = false;
        for key in keys.drain(..) {
            if self.has_ctrl_p && key == CTRL_Q {
                is_detach = true;
                break;
            }
            if self.has_ctrl_p {
                kept.push(CTRL_P);
            }
            self.has_ctrl_p = key == CTRL_P;
            if !self.has_ctrl_p {
                kept.push(key);
            }
        }
        *keys = kept;
        is_detach
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_sequence_detach() {
        for (reads, passed, detaches) in [
            (vec!["a\x10\x11b"], "a", true),
            (vec!["a\x10", "\x11"], "a", true),
            (vec!["\x10", "\x10\x11"], "\x10", true),
            (vec!["\x10", "a\x11"], "\x10a\x11", false),
            (vec!["\x11\x10x"], "\x11\x10x", false),
        ] {
            let mut keys = DetachKeys::default();
            let mut output = Vec::new();
            let mut is_detach = false;
            for read in &reads {
                let mut read = read.as_bytes().to_vec();
                is_detach |= keys.filter(&mut read);
                output.extend(read);
            }
            assert_eq!(
                (output.as_slice(), is_detach),
                (passed.as_bytes(), detaches),
                "{reads:?}"
            );
        }
    }
}
