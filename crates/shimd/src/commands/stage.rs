use std::str::FromStr;

use vmm_rest::wire::{BoxChange, BoxResponse, BoxStatus, UnknownStatus};

/// What `ps` shows as the status of a box: a [`BoxStatus`], or `starting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage(&'static str);

impl Stage {
    pub(super) fn is_of(self, bx: &BoxResponse) -> bool {
        bx.stage() == self.0
    }
}

impl FromStr for Stage {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, UnknownStatus> {
        let starting = BoxChange::Starting.name();
        if name == starting {
            Ok(Self(starting))
        } else {
            Ok(Self(BoxStatus::from_str(name)?.name()))
        }
    }
}
