use std::collections::VecDeque;

use super::action::{Action, Interrupt};

/// A step that is being performed.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) action: Action,
    pub(super) runs_worker: bool,
    pub(super) calls: u32,
    pub(super) planned: VecDeque<(u32, Interrupt)>,
    pub(super) performed: Vec<(u32, Interrupt)>,
}
