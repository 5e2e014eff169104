use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use tokio::time::sleep;
use vmm_rest::wire::{BoxChange, BoxStatus, StopBoxRequest};
use vmm_rest::{BoxEvents, Client, ClientError};

use super::interrupts::Interrupts;
use super::{Console, End, Remains};
use crate::cli::complain;
use crate::failure::Failure;

/// A box that somebody waits for.
#[derive(Debug)]
pub(super) struct Attended<'c> {
    client: &'c Client,
    events: BoxEvents,
    interrupts: Interrupts,
}

const NOT_ALL: &str = "not all that the box has printed is shown";

/// How long to go on showing what a box has printed when it was interrupted, and has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to wait before another stop of a box that has not been started yet.
const STOP_AGAIN: Duration = Duration::from_millis(50);

impl<'c> Attended<'c> {
    /// From now on nothing is missed.
    pub(super) async fn begin(client: &'c Client) -> Result<Self, Failure> {
        Ok(Self {
            client,
            events: client.events().await?,
            interrupts: Interrupts::catch().map_err(Failure::system("catch signals"))?,
        })
    }

    /// Starts it, shows what it prints, stops it when that is asked for, and tells how it ended.
    pub(super) async fn until_end(
        self,
        id: &str,
        mut console: Option<Console>,
        remains: Option<Remains>,
    ) -> Result<End, Failure> {
        let Self {
            client,
            events,
            mut interrupts,
        } = self;
        let mut life = pin!(live(client, id, events, remains));
        let mut stops = FuturesUnordered::new();
        let stop = async |after: Duration, request: StopBoxRequest| {
            sleep(after).await;
            client.stop(id, &request).await
        };
        let mut interrupted = None;
        let mut is_urgent = false;
        let mut unprinted = None;
        let ended = loop {
            tokio::select! {
                ended = &mut life => break ended,
                signal = interrupts.next() => {
                    is_urgent = interrupted.is_some();
                    interrupted.get_or_insert(signal);
                    let request = match stops.is_empty() {
                        true => StopBoxRequest::default(),
                        false => StopBoxRequest::default().timeout_seconds(0.0),
                    };
                    stops.push(stop(Duration::ZERO, request));
                }
                // The events tell its end, also if somebody else has ended it first.
                Some(stopped) = stops.next() => {
                    match stopped {
                        // It has overtaken the start, which goes by another connection.
                        Ok(stopped) if stopped.status == BoxStatus::Configured => {
                            stops.push(stop(STOP_AGAIN, StopBoxRequest::default()));
                        }
                        Ok(_) => {}
                        // Nobody is there to end the box, which may take its time.
                        Err(error) if is_urgent && error.code().is_none() => {
                            break Err(error.into());
                        }
                        Err(error) => complain(Failure::from(error)),
                    }
                }
                Some(failure) = OptionFuture::from(console.as_mut().map(Console::failure)) => {
                    console = None;
                    if failure.is_of_output() {
                        // As a program in a pipe ends.
                        stops.push(stop(Duration::ZERO, StopBoxRequest::default()));
                        unprinted = Some(failure);
                    } else {
                        complain(failure);
                    }
                }
            }
        };
        if let Some(mut console) = console {
            tokio::select! {
                shown = console.finish() => match shown {
                    Err(failure) if !failure.is_of_output() => complain(failure),
                    shown => unprinted = shown.err(),
                },
                _ = interrupts.next() => complain(NOT_ALL),
                () = sleep(LAST_WORDS), if interrupted.is_some() => complain(NOT_ALL),
            }
        }
        match unprinted {
            // Nobody wants to hear more of it, of this neither.
            Some(failure) if !failure.is_broken_pipe() => Err(failure),
            _ => ended.map_err(|failure| failure.when_interrupted_by(interrupted)),
        }
    }
}

async fn live(
    client: &Client,
    id: &str,
    events: BoxEvents,
    remains: Option<Remains>,
) -> Result<End, Failure> {
    match (told(client, id, events).await, remains) {
        // A daemon that ends stops its boxes when it tells nothing any more.
        (Err(failure), Some(remains)) if failure.is_of_lost_daemon() => {
            remains.end().await.ok_or(failure)
        }
        (end, _) => end,
    }
}

/// By the daemon.
async fn told(client: &Client, id: &str, mut events: BoxEvents) -> Result<End, Failure> {
    use BoxChange::{Failed, Removed, Stopped};
    client.start(id).await?;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event.state.box_id != id => {}
            Ok(event) if matches!(event.change, Stopped | Failed | Removed) => {
                return Ok(event.state.into());
            }
            Ok(_) => {}
            Err(ClientError::EventsMissed { .. }) => {
                let now = client.inspect(id).await?;
                if !now.status.is_alive() {
                    return Ok(now.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::DaemonEnded { id: id.to_owned() })
}
