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

use super::Glance;
use crate::failure::Failure;
use crate::output::{age_of, wants_colours};

/// What is on the screen.
#[derive(Debug)]
pub(super) struct View {
    server: String,
    now: Glance,
    /// When the reaper was last seen to have swept.
    swept_at: Instant,
    /// Why there is no newer glance.
    trouble: Option<String>,
    /// Boxes above the first one that is shown.
    scrolled: usize,
    colours: bool,
}

/// A reaper that does not sweep for so long is stuck: it does so several times a second.
const STUCK_AFTER: Duration = Duration::from_secs(2);

impl View {
    pub(super) fn new(server: String, first: Glance) -> Self {
        Self {
            server,
            swept_at: first.at,
            now: first,
            trouble: None,
            scrolled: 0,
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
            Err(error) => self.trouble = Some(Failure::from(error).to_string()),
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
        self.scrolled = moved.min(self.now.boxes.len().saturating_sub(1));
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, reaper, zombies, _, list, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.scroll(0);
        frame.render_widget(self.head(), head);
        frame.render_widget(self.reaper(), reaper);
        frame.render_widget(self.zombies(), zombies);
        self.draw_boxes(frame, list);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> Line<'_> {
        let count = |status| {
            let boxes = self.now.boxes.iter();
            boxes.filter(|listed| listed.status == status).count()
        };
        let failed = count(BoxStatus::Failed);
        Line::from_iter([
            Span::from("boxes    ").bold(),
            format!(
                "{} in all, {} running, {} stopped, ",
                self.now.boxes.len(),
                count(BoxStatus::Running),
                count(BoxStatus::Stopped),
            )
            .into(),
            self.alarming(format!("{failed} failed"), failed > 0),
        ])
    }

    fn reaper(&self) -> Line<'_> {
        let RuntimeMetricsResponse {
            shim_reaper_alive,
            shim_reaper_sweeps,
            shim_reaper_registered,
            shim_reaped,
            shim_reaper_vanished,
            shim_reaper_respawns,
            ..
        } = self.now.metrics;
        let silent = self.now.at.duration_since(self.swept_at);
        let state = match shim_reaper_alive {
            Some(false) => self.alarming("down".to_owned(), true),
            _ if silent >= STUCK_AFTER => {
                self.alarming(format!("stuck for {} s", silent.as_secs()), true)
            }
            _ => self.coloured("sweeping".to_owned(), Color::Green),
        };
        Line::from_iter([
            Span::from("reaper   ").bold(),
            state,
            format!(
                ", {shim_reaper_sweeps} sweeps, {shim_reaper_registered} shims registered, \
                 {shim_reaped} reaped, "
            )
            .into(),
            self.alarming(
                format!("{shim_reaper_vanished} vanished"),
                shim_reaper_vanished > 0,
            ),
            ", ".into(),
            self.alarming(
                format!("{shim_reaper_respawns} respawns"),
                shim_reaper_respawns > 0,
            ),
        ])
    }

    fn zombies(&self) -> Line<'_> {
        let count = self.now.zombies;
        let text = count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        Line::from_iter([
            Span::from("zombies  ").bold(),
            self.alarming(text, count.is_some_and(|count| count > 0)),
        ])
    }

    fn draw_boxes(&self, frame: &mut Frame<'_>, area: Rect) {
        let widths = [
            Constraint::Length(26),
            Constraint::Fill(2),
            Constraint::Fill(2),
            Constraint::Length(10),
            Constraint::Length(7),
            Constraint::Length(4),
            Constraint::Fill(3),
        ];
        let heading = ["BOX ID", "NAME", "IMAGE", "STATUS", "PID", "AGE", "REMARK"];
        let rows = self.now.boxes.iter().skip(self.scrolled);
        let rows = rows.map(|listed| self.row(listed));
        let table = Table::new(rows, widths).header(Row::new(heading).style(Style::new().bold()));
        frame.render_widget(table, area);
    }

    fn row(&self, listed: &BoxResponse) -> Row<'static> {
        let status = listed.status.to_string();
        let status = match listed.status {
            BoxStatus::Running => self.coloured(status, Color::Green),
            failed => self.alarming(status, failed == BoxStatus::Failed),
        };
        let remark = match (&listed.error, listed.exit_code) {
            (Some(error), _) => error.replace(char::is_control, " "),
            (None, Some(code)) => format!("code {code}"),
            (None, None) => String::new(),
        };
        Row::new([
            listed.box_id.clone().into(),
            listed.name.clone().unwrap_or_default().into(),
            listed.image.clone().into(),
            status,
            listed
                .pid
                .map(|pid| pid.to_string())
                .unwrap_or_default()
                .into(),
            Span::from(age_of(listed.created_at)),
            remark.into(),
        ])
    }

    fn foot(&self) -> Line<'_> {
        match &self.trouble {
            Some(trouble) => Line::from(self.alarming(trouble.clone(), true)),
            None => Line::from(format!("{}   q quits, arrows scroll", self.server)).dim(),
        }
    }

    fn alarming(&self, text: String, is_so: bool) -> Span<'static> {
        match is_so {
            true => self.coloured(text, Color::Red).bold(),
            false => text.into(),
        }
    }

    fn coloured(&self, text: String, colour: Color) -> Span<'static> {
        match self.colours {
            true => Span::from(text).fg(colour),
            false => text.into(),
        }
    }
}
