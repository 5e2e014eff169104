//! Exits, stats and reports are serialized in a stable format, and read back.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, UNIX_EPOCH};

use common::{exits_with, sleeper};
use serde_json::{Value, from_str, from_value, json, to_string, to_value};
use shim_reaper::{ReaperStats, ShimExit, ShimReaper, ShutdownReport, SpawnOptions, StopReport};

#[tokio::test]
async fn an_exit_has_its_code_and_its_resource_usage() {
    let reaper = ShimReaper::start();
    let exit = reaper.spawn(exits_with(3)).unwrap().await.unwrap();
    let value = to_value(exit).unwrap();
    let rusage = exit.rusage.unwrap();
    let expected = json!({
        "pid": exit.pid,
        "code": 3,
        "signal": null,
        "core_dumped": false,
        "reaped_by": "reaper",
        "rusage": {
            "user_time_us": rusage.user_time.as_micros() as u64,
            "system_time_us": rusage.system_time.as_micros() as u64,
            "max_rss": rusage.max_rss,
            "minor_faults": rusage.minor_faults,
            "major_faults": rusage.major_faults,
            "blocks_read": rusage.blocks_read,
            "blocks_written": rusage.blocks_written,
            "voluntary_switches": rusage.voluntary_switches,
            "involuntary_switches": rusage.involuntary_switches,
        },
    });
    assert_eq!(value, expected);
    assert_eq!(from_value::<ShimExit>(value).unwrap(), exit);
}

#[tokio::test]
async fn an_exit_by_a_signal_has_no_code() {
    let reaper = ShimReaper::start();
    let exit = reaper.spawn(sleeper()).unwrap().kill().await.unwrap();
    let value = to_value(exit).unwrap();
    assert_eq!(
        (&value["code"], &value["signal"]),
        (&Value::Null, &json!(9))
    );
    assert_eq!(from_value::<ShimExit>(value).unwrap(), exit);
}

#[tokio::test]
async fn an_unknown_status_has_neither_code_nor_signal() {
    let reaper = ShimReaper::start();
    // No process has this pid.
    let exit = reaper.register(i32::MAX as u32).unwrap().await.unwrap();
    assert_eq!(exit.status, None);
    let value = to_value(exit).unwrap();
    assert_eq!(
        (&value["code"], &value["signal"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(from_value::<ShimExit>(value).unwrap(), exit);
}

#[test]
fn the_format_of_an_exit_is_stable() {
    for (text, code, signal) in [
        (
            r#"{"pid":7,"code":255,"signal":null,"core_dumped":false,"reaped_by":"owner","rusage":null}"#,
            Some(255),
            None,
        ),
        (
            r#"{"pid":7,"code":null,"signal":11,"core_dumped":true,"reaped_by":"reaper","rusage":null}"#,
            None,
            Some(11),
        ),
        (
            r#"{"pid":7,"code":null,"signal":null,"core_dumped":false,"reaped_by":"observed","rusage":null}"#,
            None,
            None,
        ),
        (
            r#"{"pid":7,"code":0,"signal":null,"core_dumped":false,"reaped_by":"foreign_wait","rusage":null}"#,
            Some(0),
            None,
        ),
        (
            r#"{"pid":7,"code":0,"signal":null,"core_dumped":false,"reaped_by":"unknown","rusage":null}"#,
            Some(0),
            None,
        ),
    ] {
        let exit: ShimExit = from_str(text).unwrap();
        assert_eq!((exit.code(), exit.signal()), (code, signal));
        assert_eq!(to_string(&exit).unwrap(), text);
    }
}

#[test]
fn an_exit_may_lack_all_that_is_unknown_and_have_unknown_fields() {
    let text = r#"{"pid":7,"reaped_by":"owner","field_of_a_later_version":1}"#;
    let exit: ShimExit = from_str(text).unwrap();
    assert_eq!((exit.pid, exit.status, exit.rusage), (7, None, None));
}

#[test]
fn an_exit_that_no_process_can_have_is_refused() {
    for (fields, reason) in [
        (r#""code":1,"signal":9"#, "a code or a signal"),
        (r#""signal":0"#, "signal 0"),
        (r#""signal":127"#, "signal 127"),
        (r#""code":256"#, "256"),
        (r#""code":-1"#, "-1"),
    ] {
        let text = format!(r#"{{"pid":7,"reaped_by":"owner",{fields}}}"#);
        let error = from_str::<ShimExit>(&text).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn stats_are_read_back_to_the_millisecond() {
    let reaper = ShimReaper::start();
    reaper.spawn(exits_with(0)).unwrap().await.unwrap();
    common::eventually("a sweep completes", || {
        reaper.stats().last_sweep_at.is_some()
    })
    .await;
    let mut stats = reaper.stats();
    let value = to_value(stats).unwrap();
    let since_epoch = stats
        .last_sweep_at
        .unwrap()
        .duration_since(UNIX_EPOCH)
        .unwrap();
    let millis = since_epoch.as_millis() as u64;
    assert_eq!(value["reaped_total"], json!(1));
    assert_eq!(value["last_sweep_at_ms"], json!(millis));
    assert_eq!(value["worker_alive"], json!(true));
    stats.last_sweep_at = Some(UNIX_EPOCH + Duration::from_millis(millis));
    assert_eq!(from_value::<ReaperStats>(value).unwrap(), stats);
}

#[test]
fn stats_without_a_sweep_have_no_time() {
    let stats = ReaperStats::default();
    let value = to_value(stats).unwrap();
    assert_eq!(value["last_sweep_at_ms"], Value::Null);
    assert_eq!(from_value::<ReaperStats>(value).unwrap(), stats);
    assert_eq!(from_str::<ReaperStats>("{}").unwrap(), stats);
}

#[tokio::test]
async fn reports_are_read_back() {
    let reaper = ShimReaper::start();
    let options = SpawnOptions::new().kill_on_drop(true);
    let shim = reaper.spawn_with(sleeper(), options).unwrap();
    let report = reaper.shutdown().await;
    let value = to_value(&report).unwrap();
    let expected = json!({
        "drained": 0,
        "stopped": 0,
        "still_running": [shim.id()],
        "held_by_tracer": [],
        "killed": [],
    });
    assert_eq!(value, expected);
    assert_eq!(from_value::<ShutdownReport>(value).unwrap(), report);

    let text = r#"{"stopped":2,"killed":[7],"still_running":[8]}"#;
    let report: StopReport = from_str(text).unwrap();
    assert_eq!(to_string(&report).unwrap(), text);
}
