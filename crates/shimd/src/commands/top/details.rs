use futures::StreamExt;
use ratatui::style::Stylize;
use ratatui::text::Line;
use vmm_rest::wire::{ExecutionInfo, ExecutionStatus, GuestMetrics};
use vmm_rest::{Client, ClientError};

use crate::output::{format_age, format_memory, plain};

/// What a guest uses, the executions of a box, and the end of its output.
#[derive(Clone, Debug)]
pub(super) struct Details {
    pub(super) box_id: String,
    /// `None` without an agent.
    guest: Option<GuestMetrics>,
    executions: Vec<ExecutionInfo>,
    output: Vec<String>,
}

/// How many lines of output are requested: those of a large screen.
const OUTPUT_LINES: u32 = 200;

/// How many bytes of these are kept. A line can have any length.
const MAX_OUTPUT: usize = 64 << 10;

impl Details {
    /// Requests the details of a box from the daemon.
    pub(super) async fn request(client: &Client, box_id: &str) -> Result<Self, ClientError> {
        let executions = client.executions(box_id).await?;
        let guest = client.box_metrics(box_id).await?.guest;
        let mut chunks = client.logs(box_id, false, Some(OUTPUT_LINES)).await?;
        let mut output = Vec::new();
        while let Some(chunk) = chunks.next().await {
            output.extend(chunk?);
            let excess = output.len().saturating_sub(MAX_OUTPUT);
            output.drain(..excess);
        }
        let output = String::from_utf8_lossy(&output);
        Ok(Self {
            box_id: box_id.to_owned(),
            guest,
            executions,
            output: output.lines().map(plain).collect(),
        })
    }

    /// Returns what the guest uses, the newest executions, and below them the last lines of output, in
    /// `height` lines.
    pub(super) fn lines(&self, height: usize) -> Vec<Line<'static>> {
        let mut lines: Vec<_> = self.guest.iter().map(describe_guest).collect();
        let executions = self.executions.iter().rev().take(height / 3);
        lines.push(heading("EXECUTIONS", self.executions.len()));
        lines.extend(executions.map(|execution| Line::from(describe(execution))));
        lines.push(Line::from("OUTPUT".bold()));
        let left = height.saturating_sub(lines.len());
        let first = self.output.len().saturating_sub(left);
        lines.extend(self.output[first..].iter().cloned().map(Line::from));
        lines
    }
}

fn heading(title: &'static str, count: usize) -> Line<'static> {
    Line::from(vec![title.bold(), format!(" {count}").into()])
}

fn describe_guest(guest: &GuestMetrics) -> Line<'static> {
    let total = guest.memory_total_bytes;
    let used = total.saturating_sub(guest.memory_available_bytes);
    let text = format!(
        " memory {} of {}, load {:.2}, {} processes",
        format_memory(used),
        format_memory(total),
        guest.load_average,
        guest.processes
    );
    Line::from(vec!["GUEST".bold(), text.into()])
}

fn describe(execution: &ExecutionInfo) -> String {
    let status = match (execution.status, execution.exit_code) {
        (ExecutionStatus::Running, _) => "running".to_owned(),
        (ExecutionStatus::TimedOut, _) => "timed out".to_owned(),
        (_, Some(code)) if code < 0 => format!("signal {}", code.unsigned_abs()),
        (_, code) => format!("code {}", code.unwrap_or_default()),
    };
    let (id, age) = (
        plain(&execution.execution_id),
        format_age(execution.started_at),
    );
    format!("{id:<32} {status:<10} {age:>4}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_begin_with_what_the_guest_uses() {
        let mut guest = GuestMetrics::default();
        guest.memory_total_bytes = 200 << 20;
        guest.memory_available_bytes = 155 << 20;
        guest.load_average = 0.25;
        guest.processes = 12;
        let mut details = Details {
            box_id: String::new(),
            guest: Some(guest),
            executions: Vec::new(),
            output: vec!["first".to_owned(), "last".to_owned()],
        };
        let text = |details: &Details| -> Vec<_> {
            details.lines(4).iter().map(Line::to_string).collect()
        };
        let guest = "GUEST memory 45.0M of 200.0M, load 0.25, 12 processes";
        assert_eq!(text(&details), [guest, "EXECUTIONS 0", "OUTPUT", "last"]);
        details.guest = None;
        assert_eq!(text(&details), ["EXECUTIONS 0", "OUTPUT", "first", "last"]);
    }
}
