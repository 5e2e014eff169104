use std::collections::VecDeque;

use super::action::Interrupt;

/// A step that is being performed.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) runs_worker: bool,
    pub(super) calls: u32,
    pub(super) planned: VecDeque<(u32, Interrupt)>,
    pub(super) performed: Vec<(u32, Interrupt)>,
}
