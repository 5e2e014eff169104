//! The helper processes of a payload. The program has no test harness, because it is its own shim, with
//! an engine whose payload has a helper.
#![allow(clippy::panic, clippy::unwrap_used)]

#[macro_use]
mod support;

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;
use support::{LOOP, Shim, eventually, is_running, sh, spec};
use vmm_shim::{
    ControlGroup, Ending, Engine, EngineError, FILES, Helper, InstanceSpec, Payload, PayloadExit,
    Process, Report,
};

/// Runs a command, with a helper whose script is in the variable `HELPER`, or that does not exist.
struct WithHelper;

impl Engine for WithHelper {
    fn name(&self) -> &str {
        "with-helper"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let payload = Process.start(spec, dir)?;
        let script = spec.payload.env.get("HELPER").cloned();
        Ok(Box::new(PayloadWithHelper { payload, script }))
    }
}

struct PayloadWithHelper {
    payload: Box<dyn Payload>,
    /// `None` for a helper that does not exist.
    script: Option<String>,
}

impl Payload for PayloadWithHelper {
    fn pid(&self) -> Option<u32> {
        self.payload.pid()
    }

    fn helpers(&self) -> Vec<Helper> {
        let program = self.script.as_ref().map_or("/no/helper", |_| "/bin/sh");
        let script = self.script.as_deref().unwrap_or_default();
        let mut command = vmm_shim::Command::new(program);
        command.args(["-c", &format!("echo helper=$$; {script}")]);
        vec![Helper::new("a helper", command)]
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        self.payload.wait_until_ready()
    }

    fn stop(&self, grace: Duration) {
        self.payload.stop(grace);
    }

    fn kill(&self) {
        self.payload.kill();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        self.payload.wait()
    }
}

/// Starts a payload and its helper. Returns their shim and the pid of the helper.
fn start_with_helper(payload: &str, helper: &str) -> (Shim, u32) {
    let mut payload = sh(payload);
    payload.engine = "with-helper".to_owned();
    payload.env.insert("HELPER".into(), helper.into());
    payload.pids = Some(1000);
    let shim = Shim::with_input(&spec(payload).to_line().unwrap());
    let log = || fs::read_to_string(shim.path(FILES.helpers)).unwrap_or_default();
    eventually("the output of the helper", || log().contains('\n'));
    let pid = log().lines().next().unwrap().replace("helper=", "");
    let pid = pid.parse().unwrap();
    (shim, pid)
}

fn ended_helper(exit: Ending) -> Ending {
    Ending::Helper {
        name: "a helper".into(),
        exit: Box::new(exit),
    }
}

fn the_death_of_a_helper_ends_the_payload_and_is_the_cause() {
    let (mut shim, helper) = start_with_helper(LOOP, "exec sleep 1000");
    let Report::Ready { payload_pid, .. } = shim.report() else {
        panic!("not ready");
    };
    nix::sys::signal::kill(support::pid(helper), Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait().code(), Some(125));
    let killed = ended_helper(Ending::Signaled { signal: 9 });
    assert_eq!(shim.record().ending, killed);
    assert!(!shim.record().requested);
    assert!(!is_running(payload_pid.unwrap()) && !is_running(helper));
}

fn a_helper_that_exits_is_the_cause_only_if_the_payload_goes_on() {
    let helper = "while ! [ -e go ]; do sleep 0.01; done; touch done; exit $CODE";
    for (payload, code, expected) in [
        (LOOP, 3, ended_helper(Ending::Exited { code: 3 })),
        (LOOP, 0, ended_helper(Ending::Exited { code: 0 })),
        (
            "cd $VMM_BOX_DIR; while ! [ -e done ]; do sleep 0.01; done; exit 5",
            0,
            Ending::Exited { code: 5 },
        ),
    ] {
        let helper = helper.replace("$CODE", &code.to_string());
        let (mut shim, _) = start_with_helper(payload, &format!("cd $VMM_BOX_DIR; {helper}"));
        assert!(matches!(shim.report(), Report::Ready { .. }));
        fs::write(shim.path("go"), "").unwrap();
        shim.wait();
        assert_eq!(shim.record().ending, expected);
    }
}

fn a_killed_helper_is_the_cause_although_the_payload_has_failed_too() {
    let killed = ended_helper(Ending::Signaled { signal: 9 });
    assert_eq!(ending_with_killed_helper(5), killed);
}

fn a_payload_that_succeeds_does_not_fail_because_of_a_killed_helper() {
    assert_eq!(ending_with_killed_helper(0), Ending::Exited { code: 0 });
}

/// Returns how a box ended whose payload exited with this code while its helper was killed.
fn ending_with_killed_helper(code: i32) -> Ending {
    let payload = format!("cd $VMM_BOX_DIR; while ! [ -e go ]; do sleep 0.01; done; exit {code}");
    let (mut shim, helper) = start_with_helper(&payload, "exec sleep 1000");
    let Report::Ready { payload_pid, .. } = shim.report() else {
        panic!("not ready");
    };
    // The shim notices both ends at once.
    shim.stop();
    nix::sys::signal::kill(support::pid(helper), Signal::SIGKILL).unwrap();
    fs::write(shim.path("go"), "").unwrap();
    eventually("both have ended", || {
        !is_running(helper) && !is_running(payload_pid.unwrap())
    });
    shim.signal(Signal::SIGCONT);
    shim.wait();
    shim.record().ending
}

fn a_helper_ends_with_its_payload() {
    let payload = "cd $VMM_BOX_DIR; while ! [ -e go ]; do sleep 0.01; done; exit 4";
    let (mut shim, helper) =
        start_with_helper(payload, "trap '' TERM HUP; while :; do sleep 1; done");
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(4));
    assert!(!is_running(helper));
    assert_eq!(shim.record().ending, Ending::Exited { code: 4 });
}

fn a_helper_dies_with_its_shim() {
    let (mut shim, helper) = start_with_helper(LOOP, "exec sleep 1000");
    shim.child.kill().unwrap();
    shim.wait();
    eventually("the end of the helper", || !is_running(helper));
    // As the runtime does after such a shim.
    let file = shim.path(FILES.control_group);
    let group = ControlGroup::of_shim(file.parent().unwrap(), shim.child.id());
    group.unwrap().unwrap_or_default().remove().unwrap();
}

fn a_helper_is_in_the_control_group_of_its_payload() {
    let (mut shim, helper) = start_with_helper(LOOP, "exec sleep 1000");
    let Report::Ready { payload_pid, .. } = shim.report() else {
        panic!("not ready");
    };
    let groups = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    if groups(payload_pid.unwrap()) == groups(shim.child.id()) {
        return support::skip("no control group can be created");
    }
    assert_eq!(groups(helper), groups(payload_pid.unwrap()));
}

fn a_helper_that_cannot_be_started_fails_the_start_with_its_name() {
    let mut payload = sh(LOOP);
    payload.engine = "with-helper".to_owned();
    let mut shim = Shim::with_input(&spec(payload).to_line().unwrap());
    assert_eq!(shim.wait().code(), Some(125));
    let Ending::Failed { message, .. } = shim.record().ending else {
        panic!("{:?}", shim.record());
    };
    assert!(message.starts_with("cannot start a helper: "), "{message}");
}

fn main() {
    vmm_shim::Shim::new().engine(WithHelper).run_if_shim();
    run![
        the_death_of_a_helper_ends_the_payload_and_is_the_cause,
        a_helper_that_exits_is_the_cause_only_if_the_payload_goes_on,
        a_killed_helper_is_the_cause_although_the_payload_has_failed_too,
        a_payload_that_succeeds_does_not_fail_because_of_a_killed_helper,
        a_helper_ends_with_its_payload,
        a_helper_dies_with_its_shim,
        a_helper_is_in_the_control_group_of_its_payload,
        a_helper_that_cannot_be_started_fails_the_start_with_its_name,
    ];
}
