use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::load::Load;
use crate::{AT_ONCE, TOKEN};

/// The load over HTTP, by Debian's `wrk`.
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

    pub(crate) async fn get(&self, path: &str, span: Duration) -> Load {
        self.run("GET", path, "", span).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str, span: Duration) -> Load {
        self.run("POST", path, body, span).await
    }

    async fn run(&self, method: &str, path: &str, body: &str, span: Duration) -> Load {
        let script = format!(
            "wrk.method = '{method}'\nwrk.body = '{body}'\n\
             wrk.headers['Authorization'] = 'Bearer {TOKEN}'\n\
             wrk.headers['Content-Type'] = 'application/json'\n"
        );
        fs::write(&self.script, script).expect("a script for wrk");
        let output = Command::new("wrk")
            .args(["--latency", "--threads=1"])
            .arg(format!("--connections={AT_ONCE}"))
            .arg(format!("--duration={}s", span.as_secs()))
            .arg("--script")
            .arg(&self.script)
            .arg(format!("{}{path}", self.base))
            .output()
            .await
            .expect("wrk, from Debian's package of that name");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}");
        assert!(!told.contains("Non-2xx"), "refused: {told}");
        understand(&told).unwrap_or_else(|| panic!("wrk says: {told}"))
    }
}

fn understand(told: &str) -> Option<Load> {
    let behind = |key: &str| {
        let line = told
            .lines()
            .find_map(|line| line.trim().strip_prefix(key))?;
        Some(line.trim())
    };
    Some(Load {
        per_second: behind("Requests/sec:")?.parse().ok()?,
        p99: span_of(behind("99%")?)?,
    })
}

/// As wrk writes it: `1.30ms`.
fn span_of(text: &str) -> Option<Duration> {
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
