use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, open_log, read_log, run_shimd, serve, shimd};
use crate::process::eventually;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn commands_need_the_token_over_tcp() {
    let home = PerTestBoxHome::new();
    let token = home.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let token = token.to_str().unwrap();
    let mut command = serve(&home);
    command.args(["--listen", "127.0.0.1:0", "--token-file", token]);
    command.args(["--log-format", "json"]);
    let daemon = Daemon::spawn(&home, command).await;
    let address = read_log(&home).lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["address"].as_str().map(str::to_owned)
    });
    let url = format!("http://{}", address.unwrap());

    let list = ["ps", "--format", "json", "--url", &url];
    let output = run_shimd(&home, &[&list[..], &["--token-file", token]].concat());
    assert_eq!(output.json(), serde_json::json!([]));
    let mut with_variable = shimd(&home);
    with_variable.args(list).env("SHIMD_TOKEN", TOKEN);
    CommandOutput::of(&mut with_variable).out();

    let refused = run_shimd(&home, &list);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("there is no token"), "{refused:?}");
    with_variable.env("SHIMD_TOKEN", TOKEN.to_uppercase());
    let refused = CommandOutput::of(&mut with_variable);
    assert!(refused.err.contains("not the server's"), "{refused:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn daemon_without_a_token_does_not_listen_on_public_addresses() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command
        .args(["--listen", "0.0.0.0:0"])
        .stderr(Stdio::piped());
    let refused = CommandOutput::of(&mut command);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("there is no token"), "{refused:?}");
    assert!(
        !home.path().join("boxes").exists(),
        "the runtime was opened"
    );
    for bad in ["short", "with a blank in the middle"] {
        let refused = CommandOutput::of(command.env("SHIMD_TOKEN", bad));
        assert!(refused.err.contains("SHIMD_TOKEN"), "{refused:?}");
    }
}

#[tokio::test]
async fn images_in_a_directory_can_be_run_and_an_invalid_one_is_named() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let image = r#"{"command": ["sh", "-c", "echo $WORD"], "env": {"WORD": "hello"}}"#;
    fs::write(images.path().join("greeter.json"), image).unwrap();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    assert_eq!(run_shimd(&home, &["run", "greeter"]).out(), "hello\n");
    let refused = run_shimd(&home, &["create", "nonesuch"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("greeter, idle"), "{refused:?}");
    daemon.shut_down().await;

    fs::write(images.path().join("bad.json"), "{").unwrap();
    let mut command = serve(&home);
    command
        .arg("--images")
        .arg(images.path())
        .stderr(Stdio::piped());
    let refused = CommandOutput::of(&mut command);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("bad.json"), "{refused:?}");
}

#[test]
fn failure_to_start_is_logged_as_json() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.args(["--log-format", "json", "--listen", "0.0.0.0:0"]);
    let refused = CommandOutput::of(command.stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    let line: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(line["level"], "ERROR");
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("there is no token"), "{message}");
    // If logging is off, the failure is printed.
    let refused = CommandOutput::of(command.env("RUST_LOG", "off"));
    assert!(refused.err.contains("there is no token"), "{refused:?}");
}

/// Returns the first JSON object in a text; it starts and ends at line boundaries.
fn first_object_in(text: &str) -> String {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.trim().starts_with('{'));
    let mut object = String::new();
    while serde_json::from_str::<serde_json::Value>(&object).is_err() {
        object += lines.next().unwrap();
    }
    object
}

#[tokio::test]
async fn images_in_help_and_readme_can_be_run() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let of_help = first_object_in(&run_shimd(&home, &["serve", "--help"]).out());
    fs::write(images.path().join("help.json"), of_help).unwrap();
    let mut names = vec!["help"];
    // The package of the crate does not contain the README of the workspace.
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    if let Ok(readme) = fs::read_to_string(readme) {
        let of_readme = first_object_in(readme.split_once("\n```json\n").unwrap().1);
        fs::write(images.path().join("readme.json"), of_readme).unwrap();
        names.push("readme");
    }
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    for image in names {
        assert_eq!(run_shimd(&home, &["run", "--rm", image]).out(), "hello\n");
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn json_log_has_one_object_per_line() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command
        .args(["--log-format", "json"])
        .stderr(open_log(&home));
    let daemon = Daemon::spawn(&home, command).await;
    run_shimd(&home, &["run", "--detach", "--name", "nap", "idle"]).out();
    eventually("the start is read_log", async || {
        read_log(&home).contains("Started")
    })
    .await;
    daemon.shut_down().await;
    for line in read_log(&home).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string() && line["level"].is_string());
    }
}
