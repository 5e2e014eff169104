//! Guests with the agent: commands in the guest, and its shutdown.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, ExecSpec, GuestEvent, Removal, TerminalSize, VmmRuntime};

use crate::guest::{GuestFiles, open_runtime, spec};

fn shell(script: &str) -> ExecSpec {
    ExecSpec::new("", ["sh", "-c", script])
}

pub async fn boot(runtime: &VmmRuntime, files: &GuestFiles) -> String {
    let grace = Duration::from_secs(120);
    let spec = spec(&files.guest_with_agent()).stop_grace(grace);
    let bx = runtime.create(spec).await;
    let bx = runtime.start(&bx.unwrap().id).await.unwrap();
    assert_eq!(bx.status, BoxStatus::Running);
    bx.id.to_string()
}

#[tokio::test]
async fn commands_run_in_the_guest_and_a_stop_powers_it_off() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = boot(&runtime, &files).await;

    let script = "cat /proc/1/comm; echo err >&2; exit 42";
    let execution = runtime.exec(&id, shell(script)).await.unwrap();
    let output = execution.output().await.unwrap();
    assert_eq!(output.ending, Ending::Exited { code: 42 });
    // The agent is the init of its initial RAM file system.
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"init\n"[..], &b"err\n"[..])
    );

    let mut terminal = shell("stty size; kill -KILL $$");
    terminal.terminal = Some(TerminalSize { rows: 7, cols: 70 });
    let execution = runtime.exec(&id, terminal).await.unwrap();
    let output = execution.output().await.unwrap();
    assert_eq!(output.stdout, b"7 70\r\n");
    assert_eq!(output.ending, Ending::Signaled { signal: 9 });

    let stopped = runtime.stop(&id).await.unwrap();
    let event = GuestEvent::PoweredOff;
    assert_eq!(stopped.ending, Some(Ending::Guest { event }), "{stopped:?}");
    assert_eq!(stopped.status, BoxStatus::Stopped);
}

#[tokio::test]
async fn a_command_in_a_detached_guest_outlives_the_runtime() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let detached = spec(&files.guest_with_agent()).detached(true);
    let id = runtime.create(detached).await.unwrap().id;
    runtime.start(&id).await.unwrap();
    let mut command = shell("read line; echo got $line");
    command.id = "reader".to_owned();
    command.stdin = true;
    let first = runtime.exec(&id, command).await.unwrap();
    runtime.shutdown(Duration::from_secs(10)).await;
    drop((first, runtime));

    let runtime = open_runtime(&home).await;
    let listed = runtime.executions(&id).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    let mut execution = runtime.attach(&id, "reader").await.unwrap();
    let mut stdin = execution.stdin.take().unwrap();
    stdin.write_all(b"a line\n").await.unwrap();
    let output = execution.output().await.unwrap();
    assert_eq!(output.stdout, b"got a line\n");
    assert_eq!(output.ending, Ending::Exited { code: 0 });
    runtime.remove(&id, Removal::Force).await.unwrap();
}
