use std::io;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};
use tokio::time::Instant;
use vmm_rest::ClientError;
use vmm_rest::wire::{BoxResponse, BoxStatus, RuntimeMetricsResponse};

use super::column::Column;
use super::snapshot::{Shown, Snapshot};
use crate::failure::Failure;
use crate::output::{format_age, format_memory, plain, wants_colours};

/// The content of the screen.
#[derive(Debug)]
pub(super) struct View {
    server: String,
    snapshot: Snapshot,
    /// When the sweep counter last changed.
    swept_at: Instant,
    /// Why the last request failed.
    error: Option<String>,
    /// The age from which a snapshot is stale.
    max_age: Duration,
    /// The index of the selected box.
    selected: usize,
    /// The id of the box whose details are shown.
    details: Option<String>,
    /// The number of boxes above the first visible one.
    offset: usize,
    /// The number of visible boxes.
    rows: usize,
    colours: bool,
}

/// How a text is highlighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Alarm,
    Good,
    Plain,
}

impl Severity {
    fn alarm_if(is_alarming: bool) -> Self {
        if is_alarming {
            Self::Alarm
        } else {
            Self::Plain
        }
    }
}

/// A screen with fewer lines than this has no blank line.
const MIN_HEIGHT_FOR_GAP: u16 = 12;

/// How long the reaper may go without a sweep; it makes several per second.
const STUCK_AFTER: Duration = Duration::from_secs(2);

impl View {
    pub(super) fn new(server: String, first: Snapshot, max_age: Duration) -> Self {
        Self {
            server: plain(&server),
            swept_at: first.at,
            snapshot: first,
            error: None,
            max_age,
            selected: 0,
            details: None,
            offset: 0,
            rows: 0,
            colours: wants_colours(&io::stdout()),
        }
    }

    pub(super) fn update(&mut self, snapshot: Result<Snapshot, ClientError>) {
        match snapshot {
            Ok(snapshot) => {
                // Fewer sweeps count too: the daemon may have been restarted.
                let sweeps = self.snapshot.metrics.shim_reaper_sweeps;
                if snapshot.metrics.shim_reaper_sweeps != sweeps {
                    self.swept_at = snapshot.at;
                }
                self.snapshot = snapshot;
                self.error = None;
            }
            Err(error) => self.error = Some(plain(&Failure::from(error).with_causes())),
        }
    }

    /// Moves the selection by this number of boxes.
    pub(super) fn select(&mut self, boxes: i32) {
        self.selected = match usize::try_from(boxes) {
            Ok(down) => self.selected.saturating_add(down),
            Err(_) => {
                let up = usize::try_from(boxes.unsigned_abs()).unwrap_or(usize::MAX);
                self.selected.saturating_sub(up)
            }
        };
        self.scroll_to_selection();
        if self.details.is_some() {
            self.details = self.selected_id();
        }
    }

    /// Moves the list as little as possible, so that the selected box is visible.
    fn scroll_to_selection(&mut self) {
        let (count, rows) = (self.snapshot.boxes.len(), self.rows.max(1));
        self.selected = self.selected.min(count.saturating_sub(1));
        let first = (self.selected + 1).saturating_sub(rows);
        let offset = self.offset.clamp(first, self.selected);
        self.offset = offset.min(count.saturating_sub(rows));
    }

    fn selected_id(&self) -> Option<String> {
        let bx = self.snapshot.boxes.get(self.selected)?;
        Some(bx.box_id.clone())
    }

    /// Shows the details of the selected box, or hides them.
    pub(super) fn toggle_details(&mut self) {
        self.details = match self.details {
            Some(_) => None,
            None => self.selected_id(),
        };
    }

    /// Hides the details. Returns false if they were not shown.
    pub(super) fn close_details(&mut self) -> bool {
        self.details.take().is_some()
    }

    /// Returns what the next snapshot has to contain of single boxes.
    pub(super) fn shown(&self) -> Shown {
        let visible = self.snapshot.boxes.iter().skip(self.offset).take(self.rows);
        let running = visible.filter(|bx| bx.status.is_alive());
        Shown {
            running: running.map(|bx| bx.box_id.clone()).collect(),
            details: self.details.clone(),
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let details = if self.details.is_some() {
            area.height / 2
        } else {
            0
        };
        let [head, reaper, zombies, _, list, pane, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(u16::from(area.height >= MIN_HEIGHT_FOR_GAP)),
            Constraint::Fill(1),
            Constraint::Length(details),
            Constraint::Length(1),
        ])
        .areas(area);
        // The heading takes one line.
        self.rows = usize::from(list.height.saturating_sub(1));
        self.scroll_to_selection();
        frame.render_widget(self.head(head.width), head);
        frame.render_widget(self.reaper(reaper.width), reaper);
        frame.render_widget(self.zombies(zombies.width), zombies);
        self.draw_boxes(frame, list);
        frame.render_widget(self.details(pane.height), pane);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self, width: u16) -> Line<'static> {
        let count = |matches: fn(&BoxResponse) -> bool| {
            let boxes = self.snapshot.boxes.iter();
            boxes.filter(|bx| matches(bx)).count()
        };
        let starting = count(|bx| bx.starting);
        let running = count(|bx| bx.status.is_alive());
        let stopped = count(|bx| bx.status == BoxStatus::Stopped);
        let failed = count(|bx| bx.status == BoxStatus::Failed);
        let parts = [
            (
                format!("{} total", self.snapshot.boxes.len()),
                Severity::Plain,
            ),
            (format!("{running} running"), Severity::Plain),
            (format!("{stopped} stopped"), Severity::Plain),
            (format!("{failed} failed"), Severity::alarm_if(failed > 0)),
            (format!("{starting} starting"), Severity::Plain),
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
        } = self.snapshot.metrics;
        let stuck_for = self.snapshot.at.duration_since(self.swept_at);
        let state = match (self.stale(), shim_reaper_alive) {
            (Some(stale), _) => (stale, Severity::Alarm),
            (None, Some(false)) => ("down".to_owned(), Severity::Alarm),
            (None, _) if stuck_for >= STUCK_AFTER => (
                format!("stuck for {} s", stuck_for.as_secs()),
                Severity::Alarm,
            ),
            (None, _) => ("sweeping".to_owned(), Severity::Good),
        };
        let parts = [
            state,
            (
                format!("{shim_reaper_respawns} respawns"),
                Severity::alarm_if(shim_reaper_respawns > 0),
            ),
            (
                format!("{shim_reaper_vanished} vanished"),
                Severity::alarm_if(shim_reaper_vanished > 0),
            ),
            (
                format!("{shim_reaper_registered} shims registered"),
                Severity::Plain,
            ),
            (format!("{shim_reaped} reaped"), Severity::Plain),
            (format!("{shim_reaper_sweeps} sweeps"), Severity::Plain),
        ];
        self.line("reaper", parts, width)
    }

    fn zombies(&self, width: u16) -> Line<'static> {
        let count = self.snapshot.zombies;
        let text = count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        let severity = Severity::alarm_if(count.is_some_and(|count| count > 0));
        self.line("zombies", [(text, severity)], width)
    }

    /// Returns a message if the snapshot is stale.
    fn stale(&self) -> Option<String> {
        let age = self.snapshot.at.elapsed();
        (self.error.is_some() || age >= self.max_age)
            .then(|| format!("no response for {} s", age.as_secs()))
    }

    /// Formats a line with as many parts as fit. Alarms come directly after the first part.
    fn line<const N: usize>(
        &self,
        name: &str,
        mut parts: [(String, Severity); N],
        width: u16,
    ) -> Line<'static> {
        if let [_, rest @ ..] = &mut parts[..] {
            rest.sort_by_key(|(_, severity)| *severity != Severity::Alarm);
        }
        let mut line = Line::from(Span::from(format!("{name:<8}")).bold());
        for (index, (text, severity)) in parts.into_iter().enumerate() {
            let gap = Span::from(if index > 0 { ", " } else { "" });
            let part = self.styled(text, severity);
            if index > 0 && line.width() + gap.width() + part.width() > usize::from(width) {
                break;
            }
            line.push_span(gap);
            line.push_span(part);
        }
        line
    }

    fn draw_boxes(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = Column::select(area.width);
        // The widths depend on all boxes, so that the columns do not move when the list scrolls.
        let boxes = self.snapshot.boxes.iter();
        let mut rows: Vec<_> = boxes.map(|bx| self.row(bx, &columns)).collect();
        let widths = Column::distribute(&columns, area.width, &rows);
        let visible = rows.drain(self.offset..).take(self.rows).enumerate();
        let visible = visible.map(|(index, row)| {
            let row = Row::new(row);
            if self.offset + index == self.selected {
                row.reversed()
            } else {
                row
            }
        });
        let heading = Row::new(columns.iter().map(|column| column.title()));
        let table = Table::new(visible, widths).header(heading.style(Style::new().bold()));
        frame.render_widget(table, area);
    }

    fn row(&self, bx: &BoxResponse, columns: &[Column]) -> Vec<Span<'static>> {
        let load = |bx: &BoxResponse| {
            let load = self.snapshot.loads.get(&bx.box_id);
            load.copied().unwrap_or_default()
        };
        let cell = |column: &Column| match column {
            Column::Id => plain(&bx.box_id).into(),
            Column::Name => match &bx.name {
                Some(name) => plain(name).into(),
                // Without the column of ids, the id stands in for a missing name.
                None if !columns.contains(&Column::Id) => plain(&bx.box_id).into(),
                None => Span::default(),
            },
            Column::Image => plain(&bx.image).into(),
            Column::Status => {
                let severity = match bx.status {
                    BoxStatus::Running => Severity::Good,
                    status => Severity::alarm_if(status == BoxStatus::Failed),
                };
                self.styled(bx.stage().to_owned(), severity)
            }
            Column::Pid => {
                let pid = bx.pid.map(|pid| pid.to_string());
                pid.unwrap_or_default().into()
            }
            Column::Cpu => {
                let percent = load(bx).cpu_percent;
                let text = percent.map(|percent| format!("{percent:>5.1}"));
                text.unwrap_or_default().into()
            }
            Column::Memory => {
                let bytes = load(bx).memory_bytes;
                let text = bytes.map(|bytes| format!("{:>6}", format_memory(bytes)));
                text.unwrap_or_default().into()
            }
            Column::Age => format_age(bx.created_at).into(),
            Column::Remark => match (&bx.error, bx.exit_code) {
                (Some(error), _) => plain(error).into(),
                (None, Some(code)) => format!("code {code}").into(),
                (None, None) => Span::default(),
            },
        };
        columns.iter().map(cell).collect()
    }

    /// Returns the details of a box, under a heading with its name.
    fn details(&self, height: u16) -> Paragraph<'static> {
        let Some(id) = &self.details else {
            return Paragraph::default();
        };
        let details = self.snapshot.details.as_ref();
        let details = details.filter(|details| details.box_id == *id);
        let boxes = &mut self.snapshot.boxes.iter();
        let name = boxes.find(|bx| bx.box_id == *id);
        let name = name.and_then(|bx| bx.name.as_ref()).unwrap_or(id);
        let mut lines = vec![Line::from(format!("── {} ", plain(name))).bold()];
        lines.extend(details.map_or_else(
            || vec![Line::from("no details yet").dim()],
            |details| details.lines(usize::from(height.saturating_sub(1))),
        ));
        Paragraph::new(lines)
    }

    fn foot(&self) -> Line<'static> {
        match self.error.clone().or_else(|| self.stale()) {
            Some(error) => Line::from(self.styled(error, Severity::Alarm)),
            None => Line::from(format!(
                "{}   q quits, arrows select, Enter shows details",
                self.server
            ))
            .dim(),
        }
    }

    fn styled(&self, text: String, severity: Severity) -> Span<'static> {
        let text = Span::from(text);
        match severity {
            Severity::Plain => text,
            Severity::Alarm if self.colours => text.fg(Color::Red).bold(),
            Severity::Alarm => text.bold(),
            Severity::Good if self.colours => text.fg(Color::Green),
            Severity::Good => text,
        }
    }
}
