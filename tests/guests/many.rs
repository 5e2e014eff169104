//! Many guests, many runs of one, and many commands in one.

use std::collections::BTreeSet;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, ExecSpec, GuestEvent, Removal, RestartPolicy, VmmRuntime};

use crate::common::boxes::wait_for_info;
use crate::common::own_process::{block_on, in_own_process};
use crate::common::slow_reader::assert_memory_is_flat;
use crate::ends::POWER_OFF_AT_BUTTON;
use crate::guest::{BOOT_TIMEOUT, GuestFiles, open_runtime, spec, start_up};

const GUESTS: usize = 10;

const COMMANDS: i32 = 1000;

#[tokio::test]
async fn ten_guests_run_at_once() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest(&format!("{POWER_OFF_AT_BUTTON}; echo up; sleep 1000"));
    let start = |_| start_up(&runtime, spec(&guest).stop_grace(BOOT_TIMEOUT));
    let started = join_all((0..GUESTS).map(start)).await;
    // Each one that is up waits for the last.
    for bx in &started {
        let running = runtime.info(&bx.id).await.unwrap();
        assert_eq!(
            (running.status, running.payload_pid),
            (BoxStatus::Running, bx.payload_pid)
        );
    }
    let qemus: BTreeSet<_> = started.iter().map(|bx| bx.payload_pid).collect();
    assert_eq!(qemus.len(), GUESTS);
    let ended = join_all(started.iter().map(|bx| runtime.stop(&bx.id))).await;
    let event = GuestEvent::PoweredOff;
    for bx in ended {
        let bx = bx.unwrap();
        assert_eq!(bx.ending, Some(Ending::Guest { event }), "{bx:?}");
    }
}

#[tokio::test]
async fn a_guest_that_always_reboots_is_restarted_as_often_as_its_policy_allows() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let policy = RestartPolicy::OnFailure { max: Some(2) };
    let spec = spec(&files.guest("reboot -f")).restart(policy);
    let id = runtime.create(spec).await.unwrap().id;
    runtime.start(&id).await.unwrap();
    let ended = wait_for_info(&runtime, id.as_str(), |bx| {
        bx.restarts == 2 && bx.status == BoxStatus::Failed
    })
    .await;
    let event = GuestEvent::Reset;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
}

async fn exit_code(runtime: &VmmRuntime, id: &str, code: i32) -> Ending {
    let command = ExecSpec::new("", ["sh", "-c", &format!("exit {code}")]);
    let execution = runtime.exec(id, command).await.unwrap();
    execution.wait().await.unwrap()
}

#[tokio::test]
async fn many_short_commands_in_one_guest_end_with_their_own_codes() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(spec(&files.guest_with_agent())).await;
    let id = runtime.start(&bx.unwrap().id).await.unwrap().id.to_string();
    let codes = (0..COMMANDS).map(|n| n % 256);
    let endings = stream::iter(codes.clone())
        .map(|code| exit_code(&runtime, &id, code))
        .buffered(64)
        .collect::<Vec<_>>()
        .await;
    let expected: Vec<_> = codes.map(|code| Ending::Exited { code }).collect();
    assert_eq!(endings, expected);
    runtime.remove(&id, Removal::Force).await.unwrap();
}

#[test]
fn much_output_of_a_guest_and_a_slow_reader_do_not_grow_memory() {
    let test = "many::much_output_of_a_guest_and_a_slow_reader_do_not_grow_memory";
    // In a process of its own, which has only the memory of this test.
    let run = || {
        block_on(async {
            let Some(files) = GuestFiles::find() else {
                return;
            };
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let bx = runtime.create(spec(&files.guest_with_agent())).await;
            let bx = runtime.start(&bx.unwrap().id).await.unwrap();
            assert_memory_is_flat(&runtime, &bx).await;
            runtime.remove(&bx.id, Removal::Force).await.unwrap();
        });
    };
    if let Some(output) = in_own_process(test, run) {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
}
