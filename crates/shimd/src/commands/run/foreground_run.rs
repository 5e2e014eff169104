use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use tokio::time::sleep;
use vmm_rest::wire::{BoxChange, BoxStatus, StopBoxRequest};
use vmm_rest::{BoxEvents, Client, ClientError};

use super::console::Console;
use super::offline_box::{BoxExit, OfflineBox};
use crate::failure::Failure;
use crate::output::print_error;
use crate::signals::StopSignals;

/// A run that stays in the foreground until its box ends.
#[derive(Debug)]
pub(super) struct ForegroundRun<'c> {
    client: &'c Client,
    events: BoxEvents,
    signals: StopSignals,
}

const OUTPUT_INCOMPLETE: &str = "not all output of the box is shown";

/// How long an interrupted run keeps printing output after the box has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// How long to wait before the stop of a box that has not started yet is repeated.
const STOP_RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl<'c> ForegroundRun<'c> {
    /// Subscribes to the events of all boxes and catches the stop signals.
    pub(super) async fn subscribe(client: &'c Client) -> Result<Self, Failure> {
        Ok(Self {
            client,
            events: client.events().await?,
            signals: StopSignals::catch().map_err(Failure::system("catch signals"))?,
        })
    }

    /// Starts the box, prints its output, stops it on a signal, and returns how it ended.
    pub(super) async fn run(
        self,
        id: &str,
        mut console: Option<Console>,
        offline: Option<OfflineBox>,
    ) -> Result<BoxExit, Failure> {
        let Self {
            client,
            events,
            mut signals,
        } = self;
        let mut exit = pin!(start_and_wait(client, id, events, offline));
        let mut stops = FuturesUnordered::new();
        let stop = async |delay: Duration, request: StopBoxRequest| {
            sleep(delay).await;
            client.stop(id, &request).await
        };
        let mut interrupted_by = None;
        let mut is_urgent = false;
        let mut output_failure = None;
        let result = loop {
            tokio::select! {
                result = &mut exit => break result,
                signal = signals.next() => {
                    is_urgent = interrupted_by.is_some();
                    interrupted_by.get_or_insert(signal.as_raw_value());
                    let request = if stops.is_empty() {
                        StopBoxRequest::default()
                    } else {
                        StopBoxRequest::default().timeout_seconds(0.0)
                    };
                    stops.push(stop(Duration::ZERO, request));
                }
                // The end of the box is an event, whichever client stops it.
                Some(stopped) = stops.next() => {
                    match stopped {
                        // The stop has overtaken the start, which uses another connection.
                        Ok(bx) if bx.status == BoxStatus::Configured => {
                            stops.push(stop(STOP_RETRY_INTERVAL, StopBoxRequest::default()));
                        }
                        // A box that waited for its restart: no further event follows.
                        Ok(bx) if bx.restarts > 0 && !bx.status.is_alive() => {
                            break Ok(bx.into());
                        }
                        Ok(_) => {}
                        // The daemon is gone, and its shim may still wait for the grace period.
                        Err(error) if is_urgent && error.code().is_none() => {
                            break Err(error.into());
                        }
                        Err(error) => print_error(Failure::from(error).with_causes()),
                    }
                }
                Some(failure) = OptionFuture::from(console.as_mut().map(Console::failure)) => {
                    console = None;
                    if failure.is_output_error() {
                        // SIGPIPE ends a program in the same situation.
                        stops.push(stop(Duration::ZERO, StopBoxRequest::default()));
                        output_failure = Some(failure);
                    } else {
                        print_error(failure.with_causes());
                    }
                }
            }
        };
        if let Some(mut console) = console {
            tokio::select! {
                printed = console.finish() => match printed {
                    Err(failure) if !failure.is_output_error() => {
                        print_error(failure.with_causes());
                    }
                    printed => output_failure = printed.err(),
                },
                _ = signals.next() => print_error(OUTPUT_INCOMPLETE),
                () = sleep(OUTPUT_GRACE), if interrupted_by.is_some() => {
                    print_error(OUTPUT_INCOMPLETE);
                }
            }
        }
        match output_failure {
            // A broken pipe is not an error, see `Failure::is_broken_pipe`.
            Some(failure) if !failure.is_broken_pipe() => Err(failure),
            _ => result.map_err(|failure| failure.interrupted_by(interrupted_by)),
        }
    }
}

/// Starts the box and returns how it ended. If the connection to the daemon is lost, waits for the
/// end of the box through its files: a daemon that shuts down closes its connections before it
/// stops its boxes.
async fn start_and_wait(
    client: &Client,
    id: &str,
    events: BoxEvents,
    offline: Option<OfflineBox>,
) -> Result<BoxExit, Failure> {
    match (start_and_follow(client, id, events).await, offline) {
        (Err(failure), Some(offline)) if failure.is_daemon_lost() => {
            offline.wait().await.ok_or(failure)
        }
        (result, _) => result,
    }
}

/// Starts the box and follows the events of the daemon until the box ends.
async fn start_and_follow(
    client: &Client,
    id: &str,
    mut events: BoxEvents,
) -> Result<BoxExit, Failure> {
    use BoxChange::{Failed, Removed, Stopped};
    client.start(id).await?;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event.state.box_id != id => {}
            // The next run follows.
            Ok(event) if event.state.restarting => {}
            Ok(event) if matches!(event.change, Stopped | Failed | Removed) => {
                return Ok(event.state.into());
            }
            Ok(_) => {}
            Err(ClientError::EventsMissed { .. }) => {
                let bx = client.inspect(id).await?;
                if !bx.status.is_alive() && !bx.restarting {
                    return Ok(bx.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::DaemonEnded { id: id.to_owned() })
}
