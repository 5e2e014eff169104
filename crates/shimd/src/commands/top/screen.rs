use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use futures::future::select_all;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::snapshot::Poller;
use super::view::View;
use crate::failure::Failure;

/// The terminal, in raw mode. Dropping the screen restores the terminal.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
    view: View,
    signals: ShutdownSignals,
}

/// How often the ages on the screen are updated.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

impl Screen {
    pub(super) fn open(view: View) -> Result<Self, Failure> {
        let error = Failure::system("use the terminal");
        let signals = ShutdownSignals::catch().map_err(&error)?;
        Ok(Self {
            terminal: ratatui::try_init().map_err(&error)?,
            view,
            signals,
        })
    }

    /// Draws until the user quits, a signal arrives, or the terminal closes.
    pub(super) async fn run(mut self, mut poller: Poller) -> Result<(), Failure> {
        let mut events = EventStream::new();
        let mut redraw = interval(REDRAW_INTERVAL);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.draw().map_err(Failure::system("draw"))?;
            poller.show(self.view.shown());
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                        if key.code == KeyCode::Esc && self.view.close_details() {
                            continue;
                        }
                        if is_quit(key) {
                            return Ok(());
                        }
                        self.handle(key.code);
                    }
                    // Mostly a resize.
                    Some(Ok(_)) => {}
                    // The terminal has closed.
                    Some(Err(_)) | None => return Ok(()),
                },
                Some(snapshot) = poller.next() => self.view.update(snapshot),
                () = self.signals.next() => return Ok(()),
                _ = redraw.tick() => {}
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let view = &mut self.view;
        self.terminal.draw(|frame| view.draw(frame)).map(|_| ())
    }

    fn handle(&mut self, key: KeyCode) {
        const PAGE: i32 = 10;
        match key {
            KeyCode::Down | KeyCode::Char('j') => self.view.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.view.select(-1),
            KeyCode::PageDown => self.view.select(PAGE),
            KeyCode::PageUp => self.view.select(-PAGE),
            KeyCode::Home => self.view.select(i32::MIN),
            KeyCode::End => self.view.select(i32::MAX),
            KeyCode::Enter => self.view.toggle_details(),
            _ => {}
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn is_quit(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// The signals that end `top`, any of which must restore the terminal first.
#[derive(Debug)]
struct ShutdownSignals(Vec<Signal>);

impl ShutdownSignals {
    /// Replaces the default action of the signals.
    fn catch() -> io::Result<Self> {
        [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
        ]
        .into_iter()
        .map(signal)
        .collect::<io::Result<_>>()
        .map(Self)
    }

    /// Waits for the next signal.
    async fn next(&mut self) {
        let signals = self.0.iter_mut();
        select_all(signals.map(|signal| Box::pin(signal.recv()))).await;
    }
}
