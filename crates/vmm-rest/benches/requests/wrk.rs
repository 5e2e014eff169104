use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::load::Load;
use crate::{CONCURRENCY, TOKEN};

/// The HTTP load generator `wrk(1)`, from the Debian package of that name.
pub(crate) struct Wrk {
    base: String,
    script: PathBuf,
}

impl Wrk {
    pub(crate) fn at(base: &str, dir: &Path) -> Self {
        Self {
            base: base.to_owned(),
            script: dir.join("request.lua"),
        }
    }

    pub(crate) async fn get(&self, path: &str, duration: Duration) -> Load {
        self.run("GET", path, "", duration).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str, duration: Duration) -> Load {
        self.run("POST", path, body, duration).await
    }

    async fn run(&self, method: &str, path: &str, body: &str, duration: Duration) -> Load {
        let script = format!(
            "wrk.method = '{method}'\nwrk.body = '{body}'\n\
             wrk.headers['Authorization'] = 'Bearer {TOKEN}'\n\
             wrk.headers['Content-Type'] = 'application/json'\n"
        );
        fs::write(&self.script, script).expect("a script for wrk");
        let output = Command::new("wrk")
            .args(["--latency", "--threads=1"])
            .arg(format!("--connections={CONCURRENCY}"))
            .arg(format!("--duration={}s", duration.as_secs()))
            .arg("--script")
            .arg(&self.script)
            .arg(format!("{}{path}", self.base))
            .output()
            .await
            .expect("wrk, from Debian's package of that name");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{report}");
        assert!(!report.contains("Non-2xx"), "a request failed: {report}");
        parse_report(&report).unwrap_or_else(|| panic!("unknown report: {report}"))
    }
}

fn parse_report(report: &str) -> Option<Load> {
    let value_of = |key: &str| {
        let line = report
            .lines()
            .find_map(|line| line.trim().strip_prefix(key))?;
        Some(line.trim())
    };
    Some(Load {
        per_second: value_of("Requests/sec:")?.parse().ok()?,
        p99: parse_duration(value_of("99%")?)?,
    })
}

/// Parses a duration as wrk prints it: `1.30ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}
