use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use vmm_protocol::BootTimes;
use vmm_protocol::frames::{
    BootPhase, Connection, Frame, HostMessage, PayloadMessage, RequestError, RequestErrorKind,
    Strictness, VERSION,
};
use vmm_protocol::poll::{is_readable, wait_until};

use super::workload::{Event, NETWORK_STREAM, WORKLOAD_STREAM};
use super::{GuestEnvironment, Request, Shared, Start, Workload};
use crate::{EngineError, PayloadExit};

/// The serial port of the agent.
pub(super) type AgentPort = Connection<PayloadMessage, HostMessage>;

/// The connection to the hub of the shim.
type Client = Connection<HostMessage, PayloadMessage>;

/// The only reader and writer of the serial port of an agent.
///
/// Passes the frames of a client on, and has a stream of its own for the workload.
pub(super) struct Relay {
    port: AgentPort,
    client: Option<Client>,
    requests: Receiver<Request>,
    shared: Arc<Shared>,
    spawned: Instant,
    environment: GuestEnvironment,
    /// Until it has ended.
    workload: Option<Workload>,
    /// Called when the workload has ended.
    on_exit: Option<Box<dyn FnOnce() + Send>>,
    /// How long the guest took to boot, once its agent is ready.
    boot: Option<BootTimes>,
    /// Whether the agent is configuring the network.
    awaits_network: bool,
    is_shutting_down: bool,
}

impl Relay {
    pub(super) fn new(
        port: UnixStream,
        spawned: Instant,
        environment: GuestEnvironment,
        workload: Option<Workload>,
        on_exit: Box<dyn FnOnce() + Send>,
        requests: Receiver<Request>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        Ok(Self {
            port: Connection::new(port.into(), Strictness::Resynchronize)?,
            client: None,
            requests,
            shared,
            spawned,
            environment,
            workload,
            on_exit: Some(on_exit),
            boot: None,
            awaits_network: false,
            is_shutting_down: false,
        })
    }

    /// Starts the thread.
    pub(super) fn spawn(mut self) -> io::Result<()> {
        let thread = thread::Builder::new().name("shim-agent".to_owned());
        thread.spawn(move || {
            if let Err(error) = self.run() {
                let _ = writeln!(
                    io::stderr(),
                    "vmm-shim: lost the connection to the agent of the guest: {error}"
                );
                let error = EngineError::system("talk to the agent of the guest")(error);
                self.fail_start(error);
                if self.workload.take().is_some() {
                    self.finish_workload(PayloadExit::Unknown);
                }
            }
        })?;
        Ok(())
    }

    /// Relays frames until QEMU closes the port.
    fn run(&mut self) -> io::Result<()> {
        self.send(0, HostMessage::Hello { version: VERSION });
        loop {
            self.receive_requests();
            self.receive_from_client();
            self.receive_from_agent();
            if let Some(workload) = &mut self.workload {
                workload.send_input(&mut self.port);
            }
            self.port.flush()?;
            self.flush_client();
            if self.port.is_hung_up() {
                return Ok(());
            }
            self.wait()?;
        }
    }

    /// Blocks until there is something to do, and reads what has arrived.
    fn wait(&mut self) -> io::Result<()> {
        let client_has_room = self.client.as_ref().is_none_or(Connection::has_room);
        let mut fds = vec![
            PollFd::new(&self.shared.wake, PollFlags::IN),
            self.port.poll_fd(client_has_room),
        ];
        let client = self.client.iter();
        fds.extend(client.map(|client| client.poll_fd(self.port.has_room())));
        wait_until(&mut fds, None)?;
        let port_is_readable = is_readable(&fds[1]);
        let client_is_readable = fds.get(2).is_some_and(is_readable);
        let _ = self.shared.wake.read();
        if port_is_readable {
            self.port.fill()?;
        }
        if let Some(client) = self.client.as_mut().filter(|_| client_is_readable)
            && client.fill().is_err()
        {
            self.client = None;
        }
        Ok(())
    }

    fn receive_requests(&mut self) {
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Shutdown { grace } => self.shut_down(grace),
                Request::Serve(socket) => {
                    self.client = Client::new(socket.into(), Strictness::Strict).ok();
                }
            }
        }
    }

    fn receive_from_client(&mut self) {
        while let Some(client) = &mut self.client {
            match client.next_frame() {
                Ok(Some(Frame { stream, message })) => {
                    let message = match message {
                        HostMessage::Exec(mut exec) => {
                            self.environment.apply(&mut exec);
                            HostMessage::Exec(exec)
                        }
                        message => message,
                    };
                    if let Err(error) = self.port.send(stream, message) {
                        let error = RequestError::new(RequestErrorKind::Invalid, error.to_string());
                        let _ = client.send(stream, PayloadMessage::Error(error));
                    }
                }
                Ok(None) if client.is_hung_up() => self.client = None,
                Ok(None) => return,
                // The hub is a part of this program, and does not send such bytes.
                Err(_) => self.client = None,
            }
        }
    }

    fn flush_client(&mut self) {
        if self
            .client
            .as_mut()
            .is_some_and(|client| client.flush().is_err())
        {
            self.client = None;
        }
    }

    fn receive_from_agent(&mut self) {
        loop {
            match self.port.next_frame() {
                Ok(Some(frame)) => self.handle(frame),
                Ok(None) => return,
                // A frame of another version. The next one follows.
                Err(_) => {}
            }
        }
    }

    fn handle(&mut self, Frame { stream, message }: Frame<PayloadMessage>) {
        match message {
            PayloadMessage::Ready { version, boot } => self.handle_ready(version, &boot),
            PayloadMessage::Done if self.awaits_network && stream == NETWORK_STREAM => {
                self.awaits_network = false;
                self.start_workload();
            }
            // An agent that does not know the request responds on stream 0.
            PayloadMessage::Error(error)
                if self.awaits_network && [0, NETWORK_STREAM].contains(&stream) =>
            {
                self.fail_start(EngineError::GuestNetwork(error.message));
            }
            message if stream == WORKLOAD_STREAM => {
                let workload = self.workload.as_mut();
                match workload.and_then(|workload| workload.handle(message, &mut self.port)) {
                    Some(Event::Started) => self.mark_ready(),
                    Some(Event::NotStarted(error)) => self.fail_start(error),
                    Some(Event::Exited(exit)) => self.finish_workload(exit),
                    None => {}
                }
            }
            message => {
                if let Some(client) = &mut self.client {
                    // It was decoded, so it can be encoded.
                    let _ = client.send(stream, message);
                }
            }
        }
    }

    /// Lets the agent configure the network, and starts the workload after that.
    fn handle_ready(&mut self, version: u32, phases: &[BootPhase]) {
        if self.boot.is_some() {
            return;
        }
        if version != VERSION {
            return self.fail_start(EngineError::Other(format!(
                "the agent of the guest speaks version {version} of the frames, and this shim version \
                 {VERSION}; build the image again"
            )));
        }
        self.boot = Some(BootTimes::new(self.spawned.elapsed(), phases));
        let Some(network) = self.environment.network.take() else {
            return self.start_workload();
        };
        self.awaits_network = true;
        let request = HostMessage::ConfigureNetwork(network);
        if let Err(error) = self.port.send(NETWORK_STREAM, request) {
            self.fail_start(EngineError::GuestNetwork(error.to_string()));
        }
    }

    /// Starts the workload, unless the guest is to be shut down already.
    fn start_workload(&mut self) {
        match &self.workload {
            None => self.mark_ready(),
            Some(_) if self.is_shutting_down => {}
            Some(workload) => {
                if let Err(error) = workload.start(&self.environment, &mut self.port) {
                    self.fail_start(error);
                }
            }
        }
    }

    fn mark_ready(&mut self) {
        let boot = self.boot.unwrap_or_default();
        self.finish_start(Start::Ready(boot));
    }

    fn fail_start(&mut self, error: EngineError) {
        self.finish_start(Start::Failed(Some(error)));
    }

    fn finish_start(&mut self, start: Start) {
        self.shared.update(|state| {
            if let Start::Booting = state.start {
                state.start = start;
            }
        });
    }

    /// Stores how the workload has ended, and shuts the guest down.
    fn finish_workload(&mut self, exit: PayloadExit) {
        self.workload = None;
        self.shared.update(|state| state.exit = Some(exit));
        // What the workload has left behind is killed, as in a box without a guest.
        self.shut_down(Duration::ZERO);
        if let Some(on_exit) = self.on_exit.take() {
            on_exit();
        }
    }

    fn shut_down(&mut self, grace: Duration) {
        self.is_shutting_down = true;
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.send(0, HostMessage::Shutdown { grace_millis });
    }

    /// Sends a message that is shorter than a frame.
    fn send(&mut self, stream: u32, message: HostMessage) {
        let _ = self.port.send(stream, message);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.update(|state| state.is_closed = true);
        // The client gets what is left, and then the hang-up.
        while let Some(client) = self.client.as_mut().filter(|client| client.has_pending()) {
            let is_writable = wait_until(&mut [client.poll_fd(false)], None);
            if is_writable.is_err() || client.flush().is_err() {
                return;
            }
        }
    }
}
