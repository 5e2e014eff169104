use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, run_shimd, skip};

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(dist().join(name)).unwrap()
}

/// Runs a tool on a file. Returns `None` if the tool is not installed.
fn run_tool(tool: &str, args: &[&str], file: &str) -> Option<Output> {
    let mut command = Command::new(tool);
    match command.args(args).arg(file).current_dir(dist()).output() {
        Ok(output) => Some(output),
        Err(_) => {
            skip(&format!("{tool} is not installed"));
            None
        }
    }
}

fn assert_valid(tool: &str, args: &[&str], file: &str) {
    if let Some(output) = run_tool(tool, args, file) {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn alert_rules_are_valid_and_pass_their_tests() {
    assert_valid("promtool", &["check", "rules"], "prometheus-rules.yml");
    assert_valid("promtool", &["test", "rules"], "prometheus-rules.test.yml");
}

/// Returns the names of the metrics in an expression.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("vmm_"))
}

#[tokio::test]
async fn alert_rules_and_dashboard_use_existing_metrics() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let exposition = run_shimd(&home, &["metrics", "--format", "openmetrics"]).out();
    daemon.shut_down().await;
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    assert!(expressions.len() >= panels.len());
    expressions.push(read("prometheus-rules.yml"));
    for name in expressions.iter().flat_map(|text| metrics_in(text)) {
        let exists = exposition.lines().any(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        assert!(exists, "{name} is not in:\n{exposition}");
    }
}

#[test]
fn units_use_the_default_socket_of_clients() {
    let service = read("shimd.service");
    for line in [
        "Type=notify",
        "StateDirectory=shimd",
        "KillMode=process",
        "DelegateSubgroup=daemon",
        "Restart=on-failure",
        "StartLimitIntervalSec=0",
    ] {
        assert!(service.lines().any(|found| found == line), "{line}");
    }
    assert!(service.contains("\nWatchdogSec="));
    assert!(read("shimd.socket").contains("\nListenStream=/var/lib/shimd/shimd.sock\n"));
}

#[test]
fn debian_package_has_the_version_of_the_daemon() {
    let changelog = read("debian/changelog");
    let newest = concat!("shimd (", env!("CARGO_PKG_VERSION"), "-1) ");
    assert!(changelog.starts_with(newest), "{changelog}");
}

#[test]
fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    let service = read("shimd.service").replace("/usr/bin/shimd", env!("CARGO_BIN_EXE_shimd"));
    std::fs::write(dir.path().join("shimd.service"), service).unwrap();
    std::fs::write(dir.path().join("shimd.socket"), read("shimd.socket")).unwrap();
    let verify = ["verify", "--recursive-errors=no", "--man=no"];
    let unit = dir.path().join("shimd.service");
    if let Some(output) = run_tool("systemd-analyze", &verify, unit.to_str().unwrap()) {
        let messages = String::from_utf8(output.stderr).unwrap();
        // systemd before 254 ignores these keys.
        let is_ignored = |line: &str| {
            let keys = ["DelegateSubgroup", "RestartSteps", "RestartMaxDelaySec"];
            let unknown = keys.map(|key| format!("Unknown key '{key}'"));
            unknown.iter().any(|unknown| line.contains(unknown))
        };
        let message = messages.lines().find(|line| !is_ignored(line));
        assert_eq!(message, None, "{}", output.status);
    }
}
