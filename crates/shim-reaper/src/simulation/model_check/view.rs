use std::collections::VecDeque;
use std::process::ExitStatus;

use crate::kernel::{NoPidfd, ProcessTable, Target, WaitResult};

/// What a kernel reports, in a form that can be compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    pid: u32,
    waited: (&'static str, Option<ExitStatus>),
    /// Whether it has exited, and its status.
    stat: Option<(bool, Option<ExitStatus>)>,
    /// Whether it has exited, whether it is reaped, and its status.
    pidfd: Option<(bool, bool, Option<ExitStatus>)>,
    events: Vec<u64>,
}

impl View {
    pub(super) fn new<K: ProcessTable>(kernel: &K, pid: u32, pidfd: Option<&K::Pidfd>) -> Self {
        let stat = kernel.stat(pid).unwrap();
        Self {
            pid,
            waited: result(&kernel.peek(Target::Pid(pid))),
            stat: stat.map(|stat| (stat.exited, stat.status)),
            pidfd: pidfd.map(|pidfd| {
                let (exited, reaped) = (kernel.has_exited(pidfd), kernel.is_reaped(pidfd));
                (exited, reaped, kernel.exit_status(pidfd))
            }),
            events: Vec::new(),
        }
    }

    pub(super) fn of_events(kernel: &impl ProcessTable) -> Self {
        Self {
            pid: 0,
            waited: ("", None),
            stat: None,
            pidfd: None,
            events: events(kernel),
        }
    }
}

/// Returns the tokens of all events, sorted.
pub(super) fn events(kernel: &impl ProcessTable) -> Vec<u64> {
    let mut events = VecDeque::new();
    while kernel.ready(&mut events).unwrap() > 0 {}
    let mut events = Vec::from(events);
    events.sort_unstable();
    events
}

pub(super) fn result(result: &WaitResult) -> (&'static str, Option<ExitStatus>) {
    match result {
        WaitResult::Exited(exit) => ("exited", Some(exit.status)),
        WaitResult::Running => ("running", None),
        WaitResult::NotWaitable => ("not waitable", None),
    }
}

pub(super) fn kind(error: &NoPidfd) -> &'static str {
    match error {
        NoPidfd::NoProcess => "no process",
        NoPidfd::Exhausted(_) => "exhausted",
        NoPidfd::Unsupported => "unsupported",
    }
}
