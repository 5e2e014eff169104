use std::future::pending;
use std::io::{self, Write};
use std::process::ExitCode;

use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vmm_rest::{Client, ClientError, ExecutionEvent, ExecutionEvents, ExecutionInput};

use super::detach_keys::DetachKeys;
use super::terminal::{RawMode, read_stdin, terminal_size};
use crate::failure::{EXIT_SHIMD_FAILED, Failure};
use crate::output::{print_error, print_raw};
use crate::signals::StopSignals;

/// The streams, the signals and the terminal of this process, connected to an execution.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) box_id: &'a str,
    pub(super) execution: &'a str,
    /// Whether stdin is sent to the command.
    pub(super) interactive: bool,
    pub(super) tty: bool,
}

/// How a session ends without a failure.
enum End {
    Exited(i32),
    Detached,
}

impl Session<'_> {
    /// Runs until the command has ended, or the user leaves. Returns the exit code.
    pub(super) async fn run(self) -> Result<ExitCode, Failure> {
        let mut signals = StopSignals::catch().map_err(Failure::system("handle signals"))?;
        let attached = self.client.attach(self.box_id, self.execution).await;
        let (input, mut events) = attached?;
        let raw = (self.tty && self.interactive)
            .then(RawMode::enable)
            .transpose()?;
        let end = tokio::select! {
            end = self.print(&mut events) => end,
            end = self.send_input(input) => end,
            () = self.forward_signals(&mut signals) => Err(self.lost()),
        };
        drop(raw);
        match end {
            Ok(End::Exited(code)) => Ok(exit_code(code)),
            Ok(End::Detached) => {
                print_error(format_args!(
                    "detached; `shimd attach {} {}` returns to the command",
                    self.box_id, self.execution
                ));
                Ok(ExitCode::SUCCESS)
            }
            Err(failure) => {
                if failure.is_output_error() {
                    // No process reads what the command writes.
                    let _ = self.send_signal(SignalKind::hangup()).await;
                }
                Err(failure)
            }
        }
    }

    /// Prints the output until the command has ended.
    async fn print(&self, events: &mut ExecutionEvents) -> Result<End, Failure> {
        while let Some(event) = events.next().await {
            match event? {
                ExecutionEvent::Stdout(data) => print_raw(&data)?,
                ExecutionEvent::Stderr(data) => {
                    io::stderr().write_all(&data).map_err(Failure::Output)?;
                }
                ExecutionEvent::Exited { exit_code } => return Ok(End::Exited(exit_code)),
                ExecutionEvent::Error { message } => print_error(message),
                _ => {}
            }
        }
        Err(self.lost())
    }

    fn lost(&self) -> Failure {
        Failure::ExecutionLost {
            id: self.execution.to_owned(),
        }
    }

    /// Sends stdin and the size of the terminal. Returns only if the user leaves: if the connection
    /// breaks, the events end, too.
    async fn send_input(&self, input: ExecutionInput) -> Result<End, Failure> {
        match self.send_until_detached(input).await {
            Err(Failure::Client(_)) => pending().await,
            end => end,
        }
    }

    async fn send_until_detached(&self, mut input: ExecutionInput) -> Result<End, Failure> {
        let mut resized =
            signal(SignalKind::window_change()).map_err(Failure::system("handle signals"))?;
        let mut stdin = self.interactive.then(read_stdin).transpose()?;
        let mut keys = DetachKeys::default();
        if self.tty {
            resize(&mut input).await?;
        }
        loop {
            tokio::select! {
                data = next_input(&mut stdin) => match data {
                    Some(mut data) => {
                        let is_detach = self.tty && keys.filter(&mut data);
                        if !data.is_empty() {
                            input.write(data).await?;
                        }
                        if is_detach {
                            return Ok(End::Detached);
                        }
                    }
                    None => {
                        stdin = None;
                        input.close().await?;
                    }
                },
                _ = resized.recv(), if self.tty => resize(&mut input).await?,
            }
        }
    }

    /// Sends signals to the command. The second SIGINT or SIGTERM kills it. Returns after the third,
    /// for a user whose daemon does not respond.
    async fn forward_signals(&self, signals: &mut StopSignals) {
        let first = signals.next().await;
        // A request fails if the command has ended, which the events report.
        let _ = tokio::join!(self.send_signal(first), signals.next_forced());
        let remove = self.client.remove_execution(self.box_id, self.execution);
        let _ = tokio::join!(remove, signals.next_forced());
    }

    async fn send_signal(&self, signal: SignalKind) -> Result<(), ClientError> {
        let number = signal.as_raw_value();
        self.client
            .signal_execution(self.box_id, self.execution, number)
            .await
    }
}

async fn resize(input: &mut ExecutionInput) -> Result<(), Failure> {
    match terminal_size() {
        Some(size) => Ok(input.resize(&size).await?),
        None => Ok(()),
    }
}

/// Returns the next input, or `None` at its end. Never returns without stdin.
async fn next_input(stdin: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => pending().await,
    }
}

/// Returns the exit code of docker: 128 + N for a command that the signal N has ended.
fn exit_code(code: i32) -> ExitCode {
    let code = if code < 0 { 128 - code } else { code };
    ExitCode::from(u8::try_from(code).unwrap_or(EXIT_SHIMD_FAILED))
}
