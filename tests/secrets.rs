//! What a spec holds is nobody else's business.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::boxes::{dir_of, open, script, started};
use common::own_process::{block_on, in_own_process};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, PayloadSpec, VmmRuntime};

/// Given to the payload on its stdin, and as an option of its engine: seen nowhere.
const SAID: &str = "hunter2-said";
/// Given to the payload in its environment: seen there alone.
const SET: &str = "hunter2-set";

/// Of this process: another one runs the tests beside this one.
fn set() -> String {
    format!("{SET}-{}", std::process::id())
}

fn secretive(text: &str) -> BoxSpec {
    let mut payload = PayloadSpec::command(["sh", "-c", text]);
    payload.stdin = Some(SAID.to_owned());
    payload.options.insert("key".to_owned(), SAID.into());
    payload.env.insert("TOKEN".to_owned(), set());
    BoxSpec::of(payload)
}

#[test]
fn a_secret_appears_in_no_argument_no_environment_and_no_log_at_trace_level() {
    let test = "a_secret_appears_in_no_argument_no_environment_and_no_log_at_trace_level";
    let output = in_own_process(test, || {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .init();
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open(&home).await;
            let running = started(&runtime, secretive("cat >/dev/null; sleep 1000")).await;
            let payload = running.payload_pid.unwrap();
            for pid in pids() {
                let argv = read(pid, "cmdline");
                assert!(!argv.contains(SAID) && !argv.contains(SET), "{pid}: {argv}");
                let environment = read(pid, "environ");
                assert!(!environment.contains(SAID), "{pid}: {environment}");
                let its_own = pid == payload || is_child_of(pid, payload);
                assert!(
                    its_own || !environment.contains(&set()),
                    "{pid}: {environment}"
                );
            }
            assert!(read(payload, "environ").contains(&set()));
            fail_in_every_way(&runtime).await;
            check_files(&home, &running.id);
            runtime.shutdown(Duration::from_secs(60)).await;
            tracing::trace!("the last word");
        });
    });
    let Some(output) = output else {
        return;
    };
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("box id=") && log.contains("the last word"),
        "{log}"
    );
    assert!(!log.contains(SAID) && !log.contains(SET), "{log}");
}

/// Errors quote a lot, and are logged and shown.
async fn fail_in_every_way(runtime: &VmmRuntime) {
    let mut no_engine = secretive("true");
    no_engine.payload.engine = "warp".to_owned();
    let mut no_program = secretive("true");
    no_program.payload.command = vec!["no-such-program".to_owned(), SAID.to_owned()];
    for spec in [no_engine, no_program, secretive("true").working_dir("/no")] {
        tracing::info!(?spec, "about to fail");
        let id = runtime.create(spec).await.unwrap().id;
        let error = runtime.start(&id).await.unwrap_err();
        let info = runtime.info(&id).await.unwrap();
        let shown = format!("{error} {error:?} {info:?}");
        assert!(!shown.contains(SAID) && !shown.contains(SET), "{shown}");
    }
    tracing::info!(?runtime, "still here");
}

/// Only what is written for the runtime's own eyes holds it.
fn check_files(home: &PerTestBoxHome, id: &str) {
    for file in fs::read_dir(dir_of(home, id)).unwrap() {
        let path = file.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        if path.file_name().unwrap() != "box.json" {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains(SAID) && !text.contains(SET), "{text}");
        }
    }
    for dir in [home.path().join("boxes"), dir_of(home, id)] {
        let mode = fs::metadata(&dir).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", dir.display());
    }
}

#[tokio::test]
async fn the_payload_itself_gets_it() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, secretive("echo $(cat) $TOKEN")).await;
    runtime.wait(&running.id).await.unwrap();
    let console = fs::read_to_string(dir_of(&home, &running.id).join("console.log")).unwrap();
    assert_eq!(console.trim(), format!("{SAID} {}", set()));
}

/// What a spec says and does not know is no reason to show it.
#[tokio::test]
async fn a_damaged_spec_is_reported_without_what_it_holds() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let id = runtime.create(script("true")).await.unwrap().id;
    runtime.shutdown(Duration::from_secs(60)).await;
    let file = dir_of(&home, &id).join("box.json");
    let text = format!("{{\"id\": \"{id}\", \"created_at\": \"{SAID}\"}}");
    fs::write(file, text).unwrap();
    let runtime = open(&home).await;
    let error = runtime.info(&id).await.unwrap().error.unwrap();
    assert!(!error.contains(SAID), "{error}");
}

fn pids() -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Empty when it has ended meanwhile.
fn read(pid: u32, what: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_child_of(pid: u32, parent: u32) -> bool {
    read(pid, "status").contains(&format!("PPid:\t{parent}\n"))
}
