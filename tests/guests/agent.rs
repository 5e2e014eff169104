//! Guests with the agent: commands in the guest, and its shutdown.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmm_protocol::BoxDir;
use vmm_protocol::frames::{Frame, FrameReader, HostMessage, PayloadMessage, Strictness};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxStatus, Ending, ExecSpec, GuestEvent, Removal, RequestErrorKind, TerminalSize, VmmRuntime,
};

use crate::common::boxes::wait_for_info;
use crate::common::pause;
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

    // `tail` keeps a line that never ends. The kernel of the guest kills it, and nothing else.
    let hungry = ExecSpec::new("", ["tail", "-n", "1", "/dev/zero"]);
    let execution = runtime.exec(&id, hungry).await.unwrap();
    assert_eq!(execution.wait().await.unwrap(), Ending::OutOfMemory);
    let info = runtime.info(&id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Running, "{info:?}");

    let stopped = runtime.stop(&id).await.unwrap();
    let event = GuestEvent::PoweredOff;
    assert_eq!(stopped.ending, Some(Ending::Guest { event }), "{stopped:?}");
    assert_eq!(stopped.status, BoxStatus::Stopped);
}

#[tokio::test]
async fn a_shim_refuses_commands_until_its_guest_has_booted() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let created = runtime.create(spec(&files.guest_with_agent())).await;
    let id = created.unwrap().id.to_string();
    let early = async {
        wait_for_info(&runtime, &id, |bx| bx.pid.is_some()).await;
        // As a client of another program: the runtime does not ask a shim that starts.
        let mut client = ShimClient::connect(&home, &id).await;
        client.exec(1, "early").await;
        let refusal = client.receive().await;
        (client, refusal)
    };
    let (started, (mut client, refusal)) = tokio::join!(runtime.start(&id), early);
    started.unwrap();
    let kind = RequestErrorKind::NotReady;
    assert!(
        matches!(&refusal, PayloadMessage::Error(error) if error.kind == kind),
        "{refusal:?}"
    );
    // The same connection works later.
    client.exec(2, "late").await;
    let started = client.receive().await;
    assert!(
        matches!(started, PayloadMessage::Started { .. }),
        "{started:?}"
    );
    runtime.remove(&id, Removal::Force).await.unwrap();
}

/// A connection to the control socket of a shim.
struct ShimClient {
    socket: UnixStream,
    reader: FrameReader,
}

impl ShimClient {
    /// Connects as soon as the shim has its socket.
    async fn connect(home: &PerTestBoxHome, id: &str) -> Self {
        let path = BoxDir::new(home.path().join("boxes").join(id)).control_socket_path();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match UnixStream::connect(&path).await {
                Ok(socket) => {
                    return Self {
                        socket,
                        reader: FrameReader::new(Strictness::Strict),
                    };
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            pause().await;
        }
    }

    async fn exec(&mut self, stream: u32, id: &str) {
        let mut wire = Vec::new();
        let exec = HostMessage::Exec(ExecSpec::new(id, ["echo"]));
        Frame::new(stream, exec).encode(&mut wire).unwrap();
        self.socket.write_all(&wire).await.unwrap();
    }

    async fn receive(&mut self) -> PayloadMessage {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return frame.message;
            }
            let length = self.socket.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the shim has hung up");
            self.reader.push(&buffer[..length]);
        }
    }
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

#[tokio::test]
async fn a_client_that_disconnects_attaches_again_and_gets_the_output_of_meanwhile() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = boot(&runtime, &files).await;
    let mut command = shell(
        "read line; echo got $line
         until [ -e /go ]; do sleep 0.01; done; echo meanwhile; touch /written
         read line; echo got $line; exit 3",
    );
    command.stdin = true;
    let mut execution = runtime.exec(&id, command).await.unwrap();
    let execution_id = execution.id().to_owned();
    let stdin = execution.stdin.as_mut().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let mut line = [0; 8];
    let stdout = execution.stdout.as_mut().unwrap();
    stdout.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"got one\n");
    drop(execution);

    let wait = shell("touch /go; until [ -e /written ]; do sleep 0.01; done");
    let other = runtime.exec(&id, wait).await.unwrap();
    assert_eq!(other.wait().await.unwrap(), Ending::Exited { code: 0 });
    let mut execution = runtime.attach(&id, &execution_id).await.unwrap();
    let stdin = execution.stdin.as_mut().unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    let output = execution.output().await.unwrap();
    assert_eq!(output.stdout, b"meanwhile\ngot two\n");
    assert_eq!(output.ending, Ending::Exited { code: 3 });
    runtime.remove(&id, Removal::Force).await.unwrap();
}
