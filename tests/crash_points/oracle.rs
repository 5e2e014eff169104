//! Decides whether what a fault has left is what the history of the boxes allows.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Instant;

use serde_json::Value;
use vmm_protocol::ControlGroup;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, Ending, Removal, RuntimeOptions, VmmRuntime, with_causes};

use crate::common::{DEADLINE, eventually_blocking, pause};
use crate::leftovers;
use crate::point::{Fault, Operation, Point, Target};
use crate::subject::{BOX, DETACHED, ENDED, GO, IDLE, LABEL, ORPHANED};
use crate::supervisor::{Seen, Supervisor};

/// Describes how a box is, without what differs between runs.
pub fn describe(info: &BoxInfo) -> String {
    let status = match info.status {
        BoxStatus::Stopped => "stopped",
        BoxStatus::Failed => "failed",
        BoxStatus::Configured => return "configured".to_owned(),
        BoxStatus::Running => return "running".to_owned(),
        other => return format!("{other:?}"),
    };
    let ending = match &info.ending {
        Some(Ending::Exited { code }) => format!("exited {code}"),
        Some(Ending::Signaled { signal }) => format!("signaled {signal}"),
        Some(Ending::Failed { .. }) => "not started".to_owned(),
        Some(other) => format!("{other:?}"),
        None => "unknown".to_owned(),
    };
    format!("{status}: {ending}")
}

/// What the subject has done before it ended.
pub struct History {
    pub point: Point,
    pub seen: Seen,
    /// The report of the subject, unless it was killed.
    pub report: Option<Value>,
}

impl History {
    /// Waits for the end of the subject. Returns an error if it ended in a way that no fault explains.
    pub fn of(mut subject: Child, point: Point, supervisor: &Supervisor) -> Result<Self, String> {
        let mut status = None;
        eventually_blocking("the subject ends", || {
            status = subject.try_wait().unwrap();
            status.is_some()
        });
        let mut text = String::new();
        subject.stdout.unwrap().read_to_string(&mut text).unwrap();
        let seen = supervisor.seen();
        let Point { series, .. } = point;
        let is_killed = (series.target, series.fault) == (Target::Runtime, Fault::Kill);
        let report = if is_killed && seen.call.is_some() {
            None
        } else if status.is_some_and(|status: ExitStatus| status.success()) {
            Some(text.parse().map_err(|error| format!("{text:?}: {error}"))?)
        } else {
            let mut errors = String::new();
            subject.stderr.unwrap().read_to_string(&mut errors).unwrap();
            return Err(format!("the subject ended with {status:?}: {text}{errors}"));
        };
        Ok(Self {
            point,
            seen,
            report,
        })
    }

    /// Returns a field of the report.
    fn reported(&self, field: &str) -> Option<&str> {
        self.report.as_ref()?[field].as_str()
    }

    /// Returns the states that the box may have.
    fn allowed(&self, name: &str, has_go: bool) -> Vec<&'static str> {
        let series = self.point.series;
        let is_hit = self.seen.call.is_some();
        let is_error = is_hit && matches!(series.fault, Fault::Error(_));
        match name {
            // Without its shim.pid, a runtime cannot know whether it has run.
            IDLE if is_error && series.operation == Operation::Recover => {
                return vec!["configured", "failed: unknown"];
            }
            IDLE => return vec!["configured"],
            ENDED => return vec!["failed: exited 7"],
            DETACHED => return vec!["running"],
            // The kernel may still report the status when the home is opened.
            ORPHANED => return vec!["failed: unknown", "failed: signaled 9"],
            _ => {}
        }
        let mut states = Vec::new();
        let was_killed = self.report.is_none();
        // The state without a fault.
        states.push(match series.operation {
            Operation::Create => "configured",
            Operation::Remove => "absent",
            Operation::AutoRemove => return vec!["absent"],
            Operation::Exit | Operation::Restart => "failed: exited 7",
            Operation::Start | Operation::WarmStart | Operation::Shutdown if series.detached => {
                "running"
            }
            _ => "stopped: signaled 15",
        });
        if was_killed {
            // The runtime had not done it, or the watchdog ended the box.
            states.push(match series.operation {
                Operation::Create => "absent",
                Operation::Exit if has_go && series.detached => "failed: exited 7",
                Operation::Restart if series.detached => "failed: not started",
                _ if series.detached => "running",
                _ => "stopped: signaled 15",
            });
            match series.operation {
                Operation::Start | Operation::WarmStart => {
                    states.extend(["configured", "failed: not started"]);
                }
                // The watchdog stops a payload that exits because `is_settled` makes it.
                Operation::Restart => states.extend(["failed: not started", "stopped: exited 7"]),
                Operation::Remove => states.push("stopped: signaled 9"),
                _ => {}
            }
        }
        if is_error {
            // The exit record could not be written or read, but the kernel reports the exit code.
            states.push("stopped: exited 143");
            if series.operation == Operation::Restart {
                // The restart failed, and the policy allows only one. The info names the cause.
                states.extend([
                    "failed: not started",
                    "failed: unknown",
                    "failed: exited 125",
                ]);
            }
            if series.operation == Operation::Recover {
                // Its end was not acknowledged. The info names the file.
                states.extend(["failed: exited 143", "failed: unknown"]);
            }
        } else if is_hit && series.target == Target::Shim {
            match series.operation {
                Operation::Stop | Operation::Shutdown => states.push("stopped: signaled 9"),
                Operation::Start | Operation::WarmStart | Operation::Exit | Operation::Restart => {
                    states.push("failed: signaled 9");
                    // The shim was still dying when its runtime shut down.
                    if self.reported("status") == Some("running") {
                        states.extend(["failed: unknown", "stopped: signaled 9"]);
                    }
                }
                _ => {}
            }
        }
        states
    }

    /// Opens the home again, and compares the boxes with this history. Then starts the box, removes
    /// all, and looks for what is left.
    pub async fn judge(
        &self,
        home: &PerTestBoxHome,
        options: RuntimeOptions,
    ) -> Result<(), String> {
        let runtime = VmmRuntime::open(options)
            .await
            .map_err(|error| with_causes(&error))?;
        if let Some(error) = self.reported("second") {
            return Err(format!("the fault lasts: {error}"));
        }
        if self.report.is_some() {
            self.seen.durability.check()?;
        }
        let mut boxes = runtime.list().await;
        self.eventually_settled(&runtime, &mut boxes).await;
        let mut names = vec![BOX, IDLE];
        if self.point.series.operation == Operation::Recover {
            names.extend([ENDED, DETACHED, ORPHANED]);
        }
        for name in names {
            let info = boxes.iter().find(|info| info.name.as_deref() == Some(name));
            let state = info.map_or("absent".to_owned(), describe);
            let has_go = info.is_some_and(|info| info.dir.join(GO).exists());
            let allowed = self.allowed(name, has_go);
            if !allowed.contains(&&*state) {
                let error = info
                    .and_then(|info| info.error.as_deref())
                    .unwrap_or_default();
                return Err(format!(
                    "box {name} is {state} {error:?}, not one of {allowed:?}; report {:?}",
                    self.report
                ));
            }
            if let Some(info) = info
                && info.labels.get(LABEL.0).map(String::as_str) != Some(LABEL.1)
            {
                return Err(format!("box {name} has the labels {:?}", info.labels));
            }
        }
        if let Some(info) = boxes.iter().find(|info| info.name.as_deref() == Some(BOX)) {
            // The payload must not exit before its box is inspected.
            let _ = fs::remove_file(info.dir.join(GO));
            let started = runtime
                .start(BOX)
                .await
                .map_err(|error| with_causes(&error))?;
            if started.status != BoxStatus::Running {
                return Err(format!("a started box is {}", describe(&started)));
            }
        }
        for info in &boxes {
            let removed = runtime.remove(&info.id, Removal::Force).await;
            removed.map_err(|error| with_causes(&error))?;
        }
        // A shutdown leaves a directory whose removal takes long, as on a loaded machine, to the next runtime.
        let deadline = Instant::now() + DEADLINE;
        while !is_empty(&home.path().join("boxes")) && Instant::now() < deadline {
            pause().await;
        }
        runtime.shutdown(DEADLINE).await;
        let ids: Vec<_> = boxes.into_iter().map(|info| info.id.to_string()).collect();
        nothing_left(home.path(), &ids)
    }

    /// Waits until no box is about to end, to be restarted or to be removed.
    async fn eventually_settled(&self, runtime: &VmmRuntime, boxes: &mut Vec<BoxInfo>) {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            *boxes = runtime.list().await;
            if boxes.iter().all(|info| self.is_settled(info)) {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "boxes are not settled: {boxes:?}"
            );
            crate::common::pause().await;
        }
    }

    fn is_settled(&self, info: &BoxInfo) -> bool {
        let is_up = matches!(info.status, BoxStatus::Starting | BoxStatus::Running);
        let is_subject = info.name.as_deref() == Some(BOX);
        match self.point.series.operation {
            operation @ (Operation::Restart | Operation::AutoRemove) if is_subject => {
                // The subject may have been killed before it made the payload exit.
                let _ = fs::write(info.dir.join(GO), "");
                operation == Operation::Restart && !is_up && !info.restarting
            }
            _ => info.detached || !is_up,
        }
    }
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir()
        .is_ok_and(|mut entries| entries.next().is_none())
}

fn nothing_left(home: &Path, ids: &[String]) -> Result<(), String> {
    let mut left = Vec::new();
    for (dir, expected) in [
        (home.to_owned(), &["boxes", "lock"][..]),
        (home.join("boxes"), &[]),
    ] {
        for entry in dir.read_dir().map_err(|error| error.to_string())?.flatten() {
            if !expected.iter().any(|name| entry.file_name() == *name) {
                left.push(entry.path());
            }
        }
    }
    if ControlGroup::check().is_ok() {
        left.extend(leftovers::control_groups(ids));
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(format!("left: {left:?}"))
}
