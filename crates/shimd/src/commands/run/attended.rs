use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};
use vmm_rest::wire::{BoxChange, BoxResponse, BoxStatus, StopBoxRequest};
use vmm_rest::{BoxEvents, Client, ClientError};

use super::Console;
use super::interrupts::Interrupts;
use crate::cli::complain;
use crate::failure::Failure;

/// A box that somebody waits for.
#[derive(Debug)]
pub(super) struct Attended<'c> {
    client: &'c Client,
    events: BoxEvents,
    interrupts: Interrupts,
}

/// How often to look whether the box has printed anything.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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
    ) -> Result<BoxResponse, Failure> {
        let Self {
            client,
            events,
            mut interrupts,
        } = self;
        let mut life = pin!(live(client, id, events));
        let mut stops = FuturesUnordered::new();
        let stop = async |request: StopBoxRequest| client.stop(id, &request).await;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut life => {
                    show(&mut console);
                    return ended;
                }
                () = interrupts.next() => stops.push(stop(match stops.is_empty() {
                    true => StopBoxRequest::default(),
                    false => StopBoxRequest::default().timeout_seconds(0.0),
                })),
                // The events tell its end, also if somebody else has ended it first.
                Some(stopped) = stops.next() => {
                    if let Err(error) = stopped {
                        complain(Failure::from(error));
                    }
                }
                _ = look.tick(), if console.is_some() => {
                    if !show(&mut console) {
                        stops.push(stop(StopBoxRequest::default()));
                    }
                }
            }
        }
    }
}

/// False if nobody reads what is printed: the box is to end, as a program in a pipe does.
fn show(console: &mut Option<Console>) -> bool {
    match console.as_mut().map_or(Ok(()), Console::show) {
        Ok(()) => true,
        Err(failure) => {
            *console = None;
            let is_read = !failure.is_of_output();
            if is_read {
                complain(failure);
            }
            is_read
        }
    }
}

async fn live(client: &Client, id: &str, mut events: BoxEvents) -> Result<BoxResponse, Failure> {
    use BoxChange::{Failed, Removed, Stopped};
    client.start(id).await?;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event.state.box_id != id => {}
            Ok(event) if matches!(event.change, Stopped | Failed | Removed) => {
                return Ok(event.state);
            }
            Ok(_) => {}
            Err(ClientError::EventsMissed { .. }) => {
                let now = client.inspect(id).await?;
                if now.status != BoxStatus::Running {
                    return Ok(now);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::DaemonEnded { id: id.to_owned() })
}
