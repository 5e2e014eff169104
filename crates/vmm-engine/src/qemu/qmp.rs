//! A client of the QEMU Machine Protocol: the handshake, a few commands, and the events that report
//! how a guest ends. The event RESET needs no code: with `-action reboot=shutdown`, QEMU ends at a reset, and SHUTDOWN
//! reports it as the reason. The crate `qapi` has all of the protocol, and more dependencies than this crate.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use vmm_protocol::frames::{RequestError, RequestErrorKind};
use vmm_protocol::truncate_text;

use crate::pause::PauseObserver;
use crate::{EngineError, Pause};

/// The longest message that is read; a longer one is skipped. A compromised QEMU cannot make the shim
/// use more memory.
const MAX_MESSAGE: u64 = 1 << 20;

/// How long to wait for QEMU to read a command.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for the response to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection to the monitor of a QEMU, whose messages a thread reads.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
    /// The id of the last request. Locked until its response: one request at a time.
    last_request: Mutex<u64>,
    /// Called with the state locked, so that it learns of every change in order.
    pause_observer: PauseObserver,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    /// Whether QEMU has stopped the virtual CPUs.
    is_paused: bool,
    is_closed: bool,
    shutdown: Shutdown,
    /// The response to a request: its id, and its value or the message of an error.
    response: Option<(u64, Result<Value, String>)>,
}

/// Why QEMU ends, as its events report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// No event has reported a reason that the shim knows.
    #[default]
    Unknown,
    PoweredOff,
    Reset,
    Panicked,
    /// QEMU has received SIGTERM, SIGINT or SIGHUP.
    HostSignal,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    #[serde(rename = "return")]
    response: Option<Value>,
    error: ResponseError,
    id: Option<u64>,
    event: Option<String>,
    data: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseError {
    desc: String,
}

impl Monitor {
    /// Starts the thread.
    pub(super) fn start(socket: UnixStream) -> Result<Arc<Self>, EngineError> {
        let start = || {
            socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
            let reader = socket.try_clone()?;
            let monitor = Arc::new(Self {
                socket,
                state: Mutex::default(),
                changed: Condvar::new(),
                last_request: Mutex::default(),
                pause_observer: PauseObserver::default(),
            });
            // Fails if QEMU has ended, which the thread reports.
            let _ = monitor.execute("qmp_capabilities");
            let of_thread = Arc::clone(&monitor);
            thread::Builder::new()
                .name("shim-qmp".to_owned())
                .spawn(move || of_thread.read(BufReader::new(reader)))?;
            Ok(monitor)
        };
        start().map_err(EngineError::system("connect to the monitor of QEMU"))
    }

    /// Waits until QEMU runs the guest. Returns false if QEMU has closed the connection before.
    pub(super) fn wait_running(&self) -> bool {
        let is_pending = |state: &mut State| !state.is_running && !state.is_closed;
        let state = self.changed.wait_while(self.state(), is_pending);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.is_running
    }

    /// Waits until QEMU has closed the connection: it has ended. Returns false after the timeout.
    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        let is_open = |state: &mut State| !state.is_closed;
        let result = self
            .changed
            .wait_timeout_while(self.state(), timeout, is_open);
        let (state, _) = result.unwrap_or_else(PoisonError::into_inner);
        state.is_closed
    }

    /// Returns why QEMU ends, as far as its events have reported it.
    pub(super) fn shutdown(&self) -> Shutdown {
        self.state().shutdown
    }

    /// Presses the power button of the guest.
    pub(super) fn power_down(&self) {
        // On an error QEMU has ended, or gets SIGTERM later.
        let _ = self.execute("system_powerdown");
    }

    /// Lets a paused guest continue, without waiting for the response.
    pub(super) fn let_guest_run(&self) {
        // On an error QEMU has ended.
        let _ = self.execute("cont");
    }

    /// Sends a command, and waits for its response.
    pub(super) fn request(&self, command: &str) -> Result<Value, RequestError> {
        let failed = |cause: &str| {
            let mut message = format!("QEMU did not carry out `{command}`: {cause}");
            truncate_text(&mut message);
            RequestError::new(RequestErrorKind::Failed, message)
        };
        let last = self.last_request.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let id = *last;
        let line = format!("{{\"execute\":\"{command}\",\"id\":{id}}}\n");
        let sent = (&self.socket).write_all(line.as_bytes());
        sent.map_err(|error| failed(&error.to_string()))?;
        let is_response = |state: &State| matches!(&state.response, Some((of, _)) if *of == id);
        let is_pending = |state: &mut State| !is_response(state) && !state.is_closed;
        let result = self
            .changed
            .wait_timeout_while(self.state(), RESPONSE_TIMEOUT, is_pending);
        let (mut state, timeout) = result.unwrap_or_else(PoisonError::into_inner);
        match state.response.take_if(|(of, _)| *of == id) {
            Some((_, response)) => response.map_err(|error| failed(&error)),
            None if timeout.timed_out() => Err(failed("it does not respond")),
            None => Err(failed("it has ended")),
        }
    }

    fn execute(&self, command: &str) -> io::Result<()> {
        let line = format!("{{\"execute\":\"{command}\"}}\n");
        (&self.socket).write_all(line.as_bytes())
    }

    /// Reads messages until QEMU closes the connection.
    fn read(&self, mut reader: impl BufRead) {
        let mut line = Vec::new();
        let mut is_rest_of_line = false;
        while let Ok(1..) = (&mut reader).take(MAX_MESSAGE).read_until(b'\n', &mut line) {
            let is_complete = line.ends_with(b"\n");
            if is_complete && !is_rest_of_line {
                self.handle(&line);
            }
            is_rest_of_line = !is_complete;
            line.clear();
        }
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn handle(&self, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else {
            return;
        };
        let mut state = self.state();
        // QEMU responds when its main loop runs, and so does the guest.
        state.is_running |= message.response.is_some();
        if let Some(id) = message.id {
            state.response = Some((id, message.response.ok_or(message.error.desc)));
        }
        match message.event.as_deref() {
            Some("STOP") => self.set_paused(&mut state, true),
            Some("RESUME") => self.set_paused(&mut state, false),
            Some("GUEST_PANICKED") => state.shutdown = Shutdown::Panicked,
            Some("SHUTDOWN") if state.shutdown == Shutdown::Unknown => {
                state.shutdown = match message.data["reason"].as_str() {
                    Some("guest-shutdown") => Shutdown::PoweredOff,
                    Some("guest-reset") => Shutdown::Reset,
                    Some("guest-panic") => Shutdown::Panicked,
                    Some("host-signal") => Shutdown::HostSignal,
                    _ => Shutdown::Unknown,
                };
            }
            _ => {}
        }
        drop(state);
        self.changed.notify_all();
    }

    fn set_paused(&self, state: &mut State, is_paused: bool) {
        if state.is_paused != is_paused {
            state.is_paused = is_paused;
            self.pause_observer.notify(is_paused);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// QEMU stops the virtual CPUs of the guest. QEMU itself and its helpers go on.
impl Pause for Monitor {
    fn pause(&self) -> Result<(), RequestError> {
        self.request("stop").map(drop)
    }

    fn resume(&self) -> Result<(), RequestError> {
        self.request("cont").map(drop)
    }

    fn observe(&self, observer: Box<dyn Fn(bool) + Send + Sync>) {
        let state = self.state();
        self.pause_observer.set(observer);
        if state.is_paused {
            self.pause_observer.notify(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what a monitor has learned from these messages.
    fn after(messages: &str) -> (bool, Shutdown) {
        let (here, mut qemu) = UnixStream::pair().unwrap();
        let monitor = Monitor::start(here).unwrap();
        qemu.write_all(messages.as_bytes()).unwrap();
        drop(qemu);
        assert!(monitor.wait_closed(Duration::from_secs(60)));
        (monitor.wait_running(), monitor.shutdown())
    }

    #[test]
    fn events_report_why_qemu_ends() {
        let greeting = "{\"QMP\":{}}\n{\"return\":{}}\n";
        for (reason, expected) in [
            ("guest-shutdown", Shutdown::PoweredOff),
            ("guest-reset", Shutdown::Reset),
            ("host-signal", Shutdown::HostSignal),
            ("host-error", Shutdown::Unknown),
        ] {
            let event =
                format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"reason\":\"{reason}\"}}}}\n");
            assert_eq!(after(&format!("{greeting}{event}")), (true, expected));
            let panic = "{\"event\":\"GUEST_PANICKED\",\"data\":{\"action\":\"poweroff\"}}\n";
            let both = after(&format!("{greeting}{panic}{event}"));
            assert_eq!(both, (true, Shutdown::Panicked));
        }
    }

    #[test]
    fn a_qemu_that_has_ended_before_the_handshake_is_closed() {
        let (here, qemu) = UnixStream::pair().unwrap();
        drop(qemu);
        let monitor = Monitor::start(here).unwrap();
        assert!(!monitor.wait_running());
        assert!(monitor.wait_closed(Duration::from_secs(60)));
    }

    #[test]
    fn a_request_has_its_own_response_or_an_error() {
        let (here, qemu) = UnixStream::pair().unwrap();
        let monitor = Monitor::start(here).unwrap();
        let responses = [
            "{\"return\":{},\"id\":0}\n{\"event\":\"STOP\"}\n{\"return\":{},\"id\":1}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"it is busy\"},\"id\":2}\n",
        ];
        let commands = thread::spawn(move || {
            let mut lines = BufReader::new(&qemu).lines();
            let mut commands = vec![lines.next().unwrap().unwrap()];
            for response in responses {
                commands.push(lines.next().unwrap().unwrap());
                (&qemu).write_all(response.as_bytes()).unwrap();
            }
            // The third request, to which QEMU does not respond before it ends.
            commands.push(lines.next().unwrap().unwrap());
            commands
        });
        monitor.pause().unwrap();
        let error = monitor.resume().unwrap_err();
        assert!(error.message.ends_with("it is busy"), "{error}");
        let error = monitor.pause().unwrap_err();
        assert!(error.message.ends_with("it has ended"), "{error}");
        let commands = commands.join().unwrap();
        assert_eq!(commands[1], "{\"execute\":\"stop\",\"id\":1}");
        assert_eq!(commands[2], "{\"execute\":\"cont\",\"id\":2}");
    }

    #[test]
    fn the_observer_learns_of_each_pause_whatever_the_cause() {
        let (here, mut qemu) = UnixStream::pair().unwrap();
        let monitor = Monitor::start(here).unwrap();
        let mut send = |event| writeln!(qemu, "{{\"event\":\"{event}\"}}").unwrap();
        send("STOP");
        let (report, reports) = std::sync::mpsc::channel();
        let wait = || reports.recv_timeout(Duration::from_secs(60)).unwrap();
        monitor.observe(Box::new(move |is_paused| report.send(is_paused).unwrap()));
        assert!(wait(), "paused before the observer was set, or after");
        for event in ["RESUME", "RESUME", "STOP"] {
            send(event);
        }
        assert_eq!((wait(), wait()), (false, true));
    }

    #[test]
    fn a_qemu_that_closes_the_connection_does_not_run() {
        let expected = (false, Shutdown::Unknown);
        assert_eq!(after(""), expected);
        assert_eq!(after("garbage\n{\"event\":7}\n"), expected);
    }

    #[test]
    fn a_message_that_is_too_long_is_skipped() {
        let event =
            |reason| format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"reason\":\"{reason}\"}}}}\n");
        let long = "x".repeat(1 << 20);
        // What follows the maximum length looks like a message.
        let messages = format!(
            "{{\"return\":{{}}}}\n{long}{}{}",
            event("guest-reset"),
            event("guest-shutdown")
        );
        assert_eq!(after(&messages), (true, Shutdown::PoweredOff));
    }

    #[test]
    fn an_event_counts_although_the_monitor_stays_open() {
        let (here, mut qemu) = UnixStream::pair().unwrap();
        let monitor = Monitor::start(here).unwrap();
        let event = "{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}";
        writeln!(qemu, "{event}\n{{\"return\":{{}}}}").unwrap();
        assert!(monitor.wait_running());
        assert!(!monitor.wait_closed(Duration::ZERO));
        assert_eq!(monitor.shutdown(), Shutdown::Reset);
    }
}
