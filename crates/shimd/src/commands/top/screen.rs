use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use ratatui::DefaultTerminal;
use tokio::time::{MissedTickBehavior, interval};

use super::{Ends, View, Watch};
use crate::failure::Failure;

/// The terminal, while it is ours. It is given back as it was, however this ends.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
    view: View,
    ends: Ends,
}

/// How often the clock on the screen moves, also when nothing else does.
const REDRAW_EVERY: Duration = Duration::from_millis(500);

impl Screen {
    pub(super) fn open(view: View) -> Result<Self, Failure> {
        let failed = Failure::system("use the terminal");
        let ends = Ends::catch().map_err(&failed)?;
        Ok(Self {
            terminal: ratatui::try_init().map_err(&failed)?,
            view,
            ends,
        })
    }

    /// Until the user has seen enough.
    pub(super) async fn run(mut self, mut watch: Watch) -> Result<(), Failure> {
        let mut events = EventStream::new();
        let mut redraw = interval(REDRAW_EVERY);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.draw().map_err(Failure::system("draw"))?;
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                        if is_enough(key) {
                            return Ok(());
                        }
                        self.scroll(key.code);
                    }
                    // A change of its size, mostly: draw again.
                    Some(Ok(_)) => {}
                    // The terminal is gone.
                    Some(Err(_)) | None => return Ok(()),
                },
                Some(glance) = watch.next() => self.view.saw(glance),
                () = self.ends.next() => return Ok(()),
                _ = redraw.tick() => {}
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let view = &mut self.view;
        self.terminal.draw(|frame| view.draw(frame)).map(|_| ())
    }

    fn scroll(&mut self, key: KeyCode) {
        const PAGE: i32 = 10;
        match key {
            KeyCode::Down | KeyCode::Char('j') => self.view.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => self.view.scroll(-1),
            KeyCode::PageDown => self.view.scroll(PAGE),
            KeyCode::PageUp => self.view.scroll(-PAGE),
            KeyCode::Home => self.view.scroll(i32::MIN),
            KeyCode::End => self.view.scroll(i32::MAX),
            _ => {}
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn is_enough(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}
