//! The secrets in a spec reach the payload and nothing else.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::boxes::{box_dir, open_runtime, script, start_box};
use common::own_process::{block_on, in_own_process};
use vmm_protocol::procfs::{self, Stat};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, PayloadSpec, VmmRuntime};

/// The payload gets this secret on its stdin, and an engine as an option. It must appear nowhere.
const STDIN_SECRET: &str = "hunter2-said";
/// The payload gets this secret in its environment. It must appear only there.
const ENV_SECRET: &str = "hunter2-set";

/// Returns the environment secret of this process. Another process runs the other tests.
fn env_secret() -> String {
    format!("{ENV_SECRET}-{}", std::process::id())
}

fn spec_with_secrets(text: &str) -> BoxSpec {
    let mut payload = PayloadSpec::command(["sh", "-c", text]);
    payload.stdin = Some(STDIN_SECRET.to_owned());
    payload.env.insert("TOKEN".to_owned(), env_secret());
    BoxSpec::of(payload)
}

#[test]
fn a_secret_appears_in_no_argument_environment_or_log() {
    let test = "a_secret_appears_in_no_argument_environment_or_log";
    let output = in_own_process(test, || {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .init();
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let running =
                start_box(&runtime, spec_with_secrets("cat >/dev/null; sleep 1000")).await;
            let payload = running.payload_pid.unwrap();
            for pid in procfs::pids().unwrap() {
                let argv = read(pid, "cmdline");
                assert!(
                    !argv.contains(STDIN_SECRET) && !argv.contains(ENV_SECRET),
                    "{pid}: {argv}"
                );
                let environment = read(pid, "environ");
                assert!(!environment.contains(STDIN_SECRET), "{pid}: {environment}");
                let is_of_payload = pid == payload || is_child_of(pid, payload);
                assert!(
                    is_of_payload || !environment.contains(&env_secret()),
                    "{pid}: {environment}"
                );
            }
            assert!(read(payload, "environ").contains(&env_secret()));
            check_errors(&runtime).await;
            check_files(&home, &running.id);
            runtime.shutdown(Duration::from_secs(60)).await;
            tracing::trace!("end of the test");
        });
    });
    let Some(output) = output else {
        return;
    };
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("box id=") && log.contains("end of the test"),
        "{log}"
    );
    assert!(
        !log.contains(STDIN_SECRET) && !log.contains(ENV_SECRET),
        "{log}"
    );
}

/// Fails starts in several ways, and checks that the errors contain no secret.
async fn check_errors(runtime: &VmmRuntime) {
    let mut no_engine = spec_with_secrets("true");
    no_engine.payload.engine = "warp".to_owned();
    let mut with_option = spec_with_secrets("true");
    for spec in [&mut no_engine, &mut with_option] {
        let options = &mut spec.payload.options;
        options.insert("key".to_owned(), STDIN_SECRET.into());
    }
    let mut no_program = spec_with_secrets("true");
    no_program.payload.command = vec!["no-such-program".to_owned(), STDIN_SECRET.to_owned()];
    for spec in [
        no_engine,
        with_option,
        no_program,
        spec_with_secrets("true").working_dir("/no"),
    ] {
        tracing::info!(?spec, "about to fail");
        let id = runtime.create(spec).await.unwrap().id;
        let error = runtime.start(&id).await.unwrap_err();
        let info = runtime.info(&id).await.unwrap();
        let text = format!("{error} {error:?} {info:?}");
        assert!(
            !text.contains(STDIN_SECRET) && !text.contains(ENV_SECRET),
            "{text}"
        );
    }
    tracing::info!(?runtime, "still here");
}

/// Checks that only `box.json` contains a secret, and that all files are private.
fn check_files(home: &PerTestBoxHome, id: &str) {
    for file in fs::read_dir(box_dir(home, id)).unwrap() {
        let path = file.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        if metadata.is_file() && path.file_name().unwrap() != "box.json" {
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                !text.contains(STDIN_SECRET) && !text.contains(ENV_SECRET),
                "{text}"
            );
        }
    }
    for dir in [home.path().join("boxes"), box_dir(home, id)] {
        let mode = fs::metadata(&dir).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", dir.display());
    }
}

#[tokio::test]
async fn the_payload_gets_the_secrets() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, spec_with_secrets("echo $(cat) $TOKEN")).await;
    runtime.wait(&bx.id).await.unwrap();
    let console = fs::read_to_string(box_dir(&home, &bx.id).join("console.log")).unwrap();
    assert_eq!(console.trim(), format!("{STDIN_SECRET} {}", env_secret()));
}

#[tokio::test]
async fn the_error_for_an_invalid_spec_does_not_quote_it() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(script("true")).await.unwrap().id;
    runtime.shutdown(Duration::from_secs(60)).await;
    let file = box_dir(&home, &id).join("box.json");
    let text = format!("{{\"id\": \"{id}\", \"created_at\": \"{STDIN_SECRET}\"}}");
    fs::write(file, text).unwrap();
    let runtime = open_runtime(&home).await;
    let error = runtime.info(&id).await.unwrap().error.unwrap();
    assert!(!error.contains(STDIN_SECRET), "{error}");
}

/// Reads a file in `/proc`. Returns an empty string when the process has ended.
fn read(pid: u32, what: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_child_of(pid: u32, parent: u32) -> bool {
    matches!(Stat::of(pid), Ok(Some(stat)) if stat.parent == parent)
}
