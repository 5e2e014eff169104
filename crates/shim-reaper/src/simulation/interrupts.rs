//! What other parties do at the system calls of the reaper.

use std::io;
use std::panic::resume_unwind;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::action::{Action, Interrupt, Step};
use super::config::INTERVAL;
use super::driver::MAX_POLLS;
use super::frame::Frame;
use super::run::{Simulation, Thread, lock};
use crate::Signal;
use crate::kernel::simulated::{Failure, Interrupts};

/// How many interrupts may interrupt each other.
const MAX_DEPTH: usize = 3;

/// How many system calls one step may make.
const MAX_CALLS: u32 = 100_000;

impl Simulation {
    pub(super) fn begin(&self, step: &Step) {
        lock(&self.frames).push(Frame {
            action: step.action,
            runs_worker: false,
            calls: 0,
            planned: step.interrupts.iter().cloned().collect(),
            performed: Vec::new(),
        });
    }

    pub(super) fn end(&self, action: Action) -> Step {
        let frame = lock(&self.frames).pop();
        Step {
            action,
            interrupts: frame.map_or_else(Vec::new, |frame| frame.performed),
        }
    }

    /// Ends all steps in progress. Returns the outermost one.
    pub(super) fn end_all(&self) -> Option<Step> {
        let frames = std::mem::take(&mut *lock(&self.frames));
        frames.into_iter().rev().fold(None, |inner, frame| {
            let mut interrupts = frame.performed;
            interrupts.extend(inner.map(|step| (frame.calls, Interrupt::Step(step))));
            Some(Step {
                action: frame.action,
                interrupts,
            })
        })
    }

    pub(super) fn set_runs_worker(&self, runs_worker: bool) {
        if let Some(frame) = lock(&self.frames).last_mut() {
            frame.runs_worker = runs_worker;
        }
    }

    /// Returns what happens before the current system call.
    fn next_interrupt(&self, is_first: bool) -> Option<(u32, Interrupt)> {
        let mut frames = lock(&self.frames);
        let depth = frames.len();
        let frame = frames.last_mut()?;
        frame.calls += u32::from(is_first);
        let call = frame.calls;
        let runs_worker = frame.runs_worker;
        let mut rng = lock(&self.rng);
        let Some(rng) = rng.as_mut() else {
            while frame.planned.front().is_some_and(|(at, _)| *at <= call) {
                let planned = frame.planned.pop_front()?;
                if runs_worker || !matches!(planned.1, Interrupt::Panic) {
                    return Some(planned);
                }
            }
            return None;
        };
        drop(frames);
        // Several things may happen before one call.
        let odds = if is_first { 8 * depth } else { 3 };
        if depth > MAX_DEPTH || rng.usize(0..odds) != 0 {
            return None;
        }
        if self.config.panics && runs_worker && rng.u32(0..8) == 0 {
            return Some((call, Interrupt::Panic));
        }
        let action = self.choose(rng, true)?;
        Some((call, Interrupt::Step(Step::new(action))))
    }

    fn has_called_too_often(&self) -> bool {
        let frames = lock(&self.frames);
        frames.last().is_some_and(|frame| frame.calls > MAX_CALLS)
    }

    fn record(&self, call: u32, interrupt: Interrupt) {
        if let Some(frame) = lock(&self.frames).last_mut() {
            frame.performed.push((call, interrupt));
        }
    }
}

impl Interrupts for Simulation {
    fn before(&self, call: &'static str) {
        if self.has_called_too_often() {
            self.world().fail(format!("the reaper repeats {call}"));
            resume_unwind(Box::new("too many calls"));
        }
        let mut is_first = true;
        while let Some((call, interrupt)) = self.next_interrupt(is_first) {
            is_first = false;
            match interrupt {
                Interrupt::Panic => {
                    self.record(call, Interrupt::Panic);
                    self.note_panic();
                    // Without the panic hook, which would print it.
                    resume_unwind(Box::new("injected"));
                }
                Interrupt::Step(step) => {
                    self.begin(&step);
                    self.perform(step.action);
                    let performed = self.end(step.action);
                    self.record(call, Interrupt::Step(performed));
                }
            }
        }
    }

    fn block(&self, time: Duration) {
        self.kernel().pass_time(time);
        // Sets the clock. The timers of tokio do not expire before the step ends, only those of the
        // simulated kernel.
        let mut advance = pin!(tokio::time::advance(time));
        let _ = advance
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let needs_tokio = !self.config.is_prompt() || !self.config.grace.is_zero();
        if needs_tokio || !self.has_worker() {
            self.expect_delay(INTERVAL);
        }
        if !self.may_stop() {
            return;
        }
        for _ in 0..MAX_POLLS {
            if !self.poll_worker() {
                break;
            }
        }
        self.run_threads();
        self.check();
    }

    fn fork(&self) -> Option<usize> {
        self.fork_child()
    }

    fn start_thread(&self, run: Thread) -> io::Result<()> {
        if self.may_stop() {
            self.kernel().fails(Failure::Thread)?;
        }
        lock(&self.threads).push_back(run);
        Ok(())
    }

    fn reaped(&self, process: usize, is_orphan: bool) {
        self.check_reap(process, is_orphan);
    }

    fn signalled(&self, process: usize, signal: Signal) {
        self.check_signal(process, signal);
    }

    fn drain_begins(&self) {
        // A panic of the worker can end a drain. Another one follows.
        self.world().ended_before_drain = self.count_ended();
    }
}
