use std::io;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Row, Table};
use tokio::time::Instant;
use vmm_rest::ClientError;
use vmm_rest::wire::{BoxResponse, BoxStatus, RuntimeMetricsResponse};

use super::{Column, Glance, Tone};
use crate::failure::Failure;
use crate::output::{age_of, plain, wants_colours};

/// What is on the screen.
#[derive(Debug)]
pub(super) struct View {
    server: String,
    now: Glance,
    /// When the reaper was last seen to have swept.
    swept_at: Instant,
    /// Why there is no newer glance.
    trouble: Option<String>,
    /// How old a glance may be.
    patience: Duration,
    /// Boxes above the first one that is shown.
    scrolled: usize,
    /// How many are shown.
    rows: usize,
    colours: bool,
}

/// A screen that is lower than this has no line to spare.
const ROOMY: u16 = 12;

/// A reaper that does not sweep for so long is stuck: it does so several times a second.
const STUCK_AFTER: Duration = Duration::from_secs(2);

impl View {
    pub(super) fn new(server: String, first: Glance, patience: Duration) -> Self {
        Self {
            server: plain(&server),
            swept_at: first.at,
            now: first,
            trouble: None,
            patience,
            scrolled: 0,
            rows: 0,
            colours: wants_colours(&io::stdout()),
        }
    }

    pub(super) fn saw(&mut self, glance: Result<Glance, ClientError>) {
        match glance {
            Ok(glance) => {
                // Not only more of them: it may be another daemon by now.
                if glance.metrics.shim_reaper_sweeps != self.now.metrics.shim_reaper_sweeps {
                    self.swept_at = glance.at;
                }
                self.now = glance;
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(plain(&Failure::from(error).to_string())),
        }
    }

    pub(super) fn scroll(&mut self, lines: i32) {
        let moved = match usize::try_from(lines) {
            Ok(down) => self.scrolled.saturating_add(down),
            Err(_) => {
                let up = usize::try_from(lines.unsigned_abs()).unwrap_or(usize::MAX);
                self.scrolled.saturating_sub(up)
            }
        };
        let last = self.now.boxes.len().saturating_sub(self.rows.max(1));
        self.scrolled = moved.min(last);
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let [head, reaper, zombies, _, list, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(u16::from(area.height >= ROOMY)),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(area);
        // Below the heading.
        self.rows = usize::from(list.height.saturating_sub(1));
        self.scroll(0);
        frame.render_widget(self.head(head.width), head);
        frame.render_widget(self.reaper(reaper.width), reaper);
        frame.render_widget(self.zombies(zombies.width), zombies);
        self.draw_boxes(frame, list);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self, width: u16) -> Line<'static> {
        let count = |is_such: fn(BoxStatus) -> bool| {
            let boxes = self.now.boxes.iter();
            boxes.filter(|listed| is_such(listed.status)).count()
        };
        let running = count(BoxStatus::is_alive);
        let stopped = count(|status| status == BoxStatus::Stopped);
        let failed = count(|status| status == BoxStatus::Failed);
        let parts = [
            (format!("{} in all", self.now.boxes.len()), Tone::Plain),
            (format!("{running} running"), Tone::Plain),
            (format!("{stopped} stopped"), Tone::Plain),
            (format!("{failed} failed"), Tone::alarm_if(failed > 0)),
        ];
        self.line("boxes", parts, width)
    }

    fn reaper(&self, width: u16) -> Line<'static> {
        let RuntimeMetricsResponse {
            shim_reaper_alive,
            shim_reaper_sweeps,
            shim_reaper_registered,
            shim_reaped,
            shim_reaper_vanished,
            shim_reaper_respawns,
            ..
        } = self.now.metrics;
        let stuck_for = self.now.at.duration_since(self.swept_at);
        let state = match (self.silence(), shim_reaper_alive) {
            (Some(silence), _) => (silence, Tone::Alarm),
            (None, Some(false)) => ("down".to_owned(), Tone::Alarm),
            (None, _) if stuck_for >= STUCK_AFTER => {
                (format!("stuck for {} s", stuck_for.as_secs()), Tone::Alarm)
            }
            (None, _) => ("sweeping".to_owned(), Tone::Good),
        };
        let parts = [
            state,
            (
                format!("{shim_reaper_respawns} respawns"),
                Tone::alarm_if(shim_reaper_respawns > 0),
            ),
            (
                format!("{shim_reaper_vanished} vanished"),
                Tone::alarm_if(shim_reaper_vanished > 0),
            ),
            (
                format!("{shim_reaper_registered} shims registered"),
                Tone::Plain,
            ),
            (format!("{shim_reaped} reaped"), Tone::Plain),
            (format!("{shim_reaper_sweeps} sweeps"), Tone::Plain),
        ];
        self.line("reaper", parts, width)
    }

    fn zombies(&self, width: u16) -> Line<'static> {
        let count = self.now.zombies;
        let text = count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        let tone = Tone::alarm_if(count.is_some_and(|count| count > 0));
        self.line("zombies", [(text, tone)], width)
    }

    /// What is on the screen is old.
    fn silence(&self) -> Option<String> {
        let silence = self.now.at.elapsed();
        (self.trouble.is_some() || silence >= self.patience)
            .then(|| format!("no answer for {} s", silence.as_secs()))
    }

    /// What does not fit is left out, and after the first part what alarms comes first.
    fn line<const N: usize>(
        &self,
        name: &str,
        mut parts: [(String, Tone); N],
        width: u16,
    ) -> Line<'static> {
        if let [_, rest @ ..] = &mut parts[..] {
            rest.sort_by_key(|(_, tone)| *tone != Tone::Alarm);
        }
        let mut line = Line::from(Span::from(format!("{name:<8}")).bold());
        for (index, (text, tone)) in parts.into_iter().enumerate() {
            let gap = Span::from(if index > 0 { ", " } else { "" });
            let part = self.toned(text, tone);
            if index > 0 && line.width() + gap.width() + part.width() > usize::from(width) {
                break;
            }
            line.push_span(gap);
            line.push_span(part);
        }
        line
    }

    fn draw_boxes(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = Column::fitting(area.width);
        // All of them, for columns that stay where they are when the list is scrolled.
        let boxes = self.now.boxes.iter();
        let mut rows: Vec<_> = boxes.map(|listed| self.row(listed, &columns)).collect();
        let widths = Column::share(&columns, area.width, &rows);
        let shown = rows.drain(self.scrolled..).take(self.rows).map(Row::new);
        let heading = Row::new(columns.iter().map(|column| column.title()));
        let table = Table::new(shown, widths).header(heading.style(Style::new().bold()));
        frame.render_widget(table, area);
    }

    fn row(&self, listed: &BoxResponse, columns: &[Column]) -> Vec<Span<'static>> {
        let cell = |column: &Column| match column {
            Column::Id => plain(&listed.box_id).into(),
            Column::Name => match &listed.name {
                Some(name) => plain(name).into(),
                // It has to be called something.
                None if !columns.contains(&Column::Id) => plain(&listed.box_id).into(),
                None => Span::default(),
            },
            Column::Image => plain(&listed.image).into(),
            Column::Status => {
                let tone = match listed.status {
                    BoxStatus::Running => Tone::Good,
                    status => Tone::alarm_if(status == BoxStatus::Failed),
                };
                self.toned(listed.status.to_string(), tone)
            }
            Column::Pid => {
                let pid = listed.pid.map(|pid| pid.to_string());
                pid.unwrap_or_default().into()
            }
            Column::Age => age_of(listed.created_at).into(),
            Column::Remark => match (&listed.error, listed.exit_code) {
                (Some(error), _) => plain(error).into(),
                (None, Some(code)) => format!("code {code}").into(),
                (None, None) => Span::default(),
            },
        };
        columns.iter().map(cell).collect()
    }

    fn foot(&self) -> Line<'static> {
        match self.trouble.clone().or_else(|| self.silence()) {
            Some(trouble) => Line::from(self.toned(trouble, Tone::Alarm)),
            None => Line::from(format!("{}   q quits, arrows scroll", self.server)).dim(),
        }
    }

    fn toned(&self, text: String, tone: Tone) -> Span<'static> {
        let text = Span::from(text);
        match tone {
            Tone::Plain => text,
            Tone::Alarm if self.colours => text.fg(Color::Red).bold(),
            Tone::Alarm => text.bold(),
            Tone::Good if self.colours => text.fg(Color::Green),
            Tone::Good => text,
        }
    }
}
