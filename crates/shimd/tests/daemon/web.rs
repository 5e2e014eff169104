use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, log, logged, said, serve, shimd};
use crate::process::eventually;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn commands_reach_a_daemon_over_tcp_with_its_token_only() {
    let home = PerTestBoxHome::new();
    let token = home.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let token = token.to_str().unwrap();
    let mut command = serve(&home);
    command.args(["--listen", "127.0.0.1:0", "--token-file", token]);
    command.args(["--log-format", "json"]);
    let daemon = Daemon::spawn(&home, command).await;
    let address = logged(&home).lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["address"].as_str().map(str::to_owned)
    });
    let url = format!("http://{}", address.unwrap());

    let list = ["ps", "--format", "json", "--url", &url];
    let told = said(&home, &[&list[..], &["--token-file", token]].concat());
    assert_eq!(told.json(), serde_json::json!([]));
    let mut by_variable = shimd(&home);
    by_variable.args(list).env("SHIMD_TOKEN", TOKEN);
    Said::of(&mut by_variable).out();

    let refused = said(&home, &list);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("there is no token"), "{refused:?}");
    by_variable.env("SHIMD_TOKEN", TOKEN.to_uppercase());
    let refused = Said::of(&mut by_variable);
    assert!(refused.err.contains("not the server's"), "{refused:?}");
    daemon.end().await;
}

#[tokio::test]
async fn a_daemon_that_everybody_could_reach_does_not_start() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command
        .args(["--listen", "0.0.0.0:0"])
        .stderr(Stdio::piped());
    let refused = Said::of(&mut command);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("there is no token"), "{refused:?}");
    assert!(!home.path().join("boxes").exists(), "no box was looked at");
    for bad in ["short", "with a blank in the middle"] {
        let refused = Said::of(command.env("SHIMD_TOKEN", bad));
        assert!(refused.err.contains("SHIMD_TOKEN"), "{refused:?}");
    }
}

#[tokio::test]
async fn images_of_a_folder_can_be_run_and_a_bad_one_is_named() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let image = r#"{"command": ["sh", "-c", "echo $WORD"], "env": {"WORD": "hello"}}"#;
    fs::write(images.path().join("greeter.json"), image).unwrap();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    assert_eq!(said(&home, &["run", "greeter"]).out(), "hello\n");
    let refused = said(&home, &["create", "nonesuch"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("greeter, idle"), "{refused:?}");
    daemon.end().await;

    fs::write(images.path().join("bad.json"), "{").unwrap();
    let mut command = serve(&home);
    command
        .arg("--images")
        .arg(images.path())
        .stderr(Stdio::piped());
    let refused = Said::of(&mut command);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("bad.json"), "{refused:?}");
}

#[test]
fn a_failure_to_start_is_logged_in_json_too() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.args(["--log-format", "json", "--listen", "0.0.0.0:0"]);
    let refused = Said::of(command.stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    let line: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(line["level"], "ERROR");
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("there is no token"), "{message}");
    // Also when nothing is to be logged it is told.
    let refused = Said::of(command.env("RUST_LOG", "off"));
    assert!(refused.err.contains("there is no token"), "{refused:?}");
}

/// The first object that a text shows, from a line that begins it to the line that ends it.
fn object_in(text: &str) -> String {
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
async fn the_images_that_help_and_readme_show_can_be_run() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let of_help = object_in(&said(&home, &["serve", "--help"]).out());
    let readme = include_str!("../../../../README.md");
    let of_readme = object_in(readme.split_once("\n```json\n").unwrap().1);
    fs::write(images.path().join("help.json"), of_help).unwrap();
    fs::write(images.path().join("readme.json"), of_readme).unwrap();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    for image in ["help", "readme"] {
        assert_eq!(said(&home, &["run", "--rm", image]).out(), "hello\n");
    }
    daemon.end().await;
}

#[tokio::test]
async fn a_log_in_json_has_an_object_a_line() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.args(["--log-format", "json"]).stderr(log(&home));
    let daemon = Daemon::spawn(&home, command).await;
    said(&home, &["run", "--detach", "--name", "nap", "idle"]).out();
    eventually("the start is logged", async || {
        logged(&home).contains("Started")
    })
    .await;
    daemon.end().await;
    for line in logged(&home).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string() && line["level"].is_string());
    }
}
