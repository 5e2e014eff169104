use std::fs;
use std::io::{BufRead, BufReader};
use std::iter;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, logged, said, shimd, words};
use crate::process::{DEADLINE, end_of, eventually};
use crate::terminal::Terminal;

#[tokio::test]
async fn a_message_leaves_the_terminal_alone_whatever_it_quotes() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let program = "\n/\u{7}\u{9b}2J\u{202e}\u{2066}program";
    let absent = home.path().join(program);
    let absent = absent.to_str().unwrap();
    for args in [
        &["run", "--rm", "idle", program][..],
        &["run", "--detach", "idle", program],
        &["create", "--name", program, "idle"],
        &["ps", "--url", program],
        &["ps", "--url", "http://127.0.0.1:1", "--token-file", absent],
    ] {
        let told = said(&home, args);
        assert_ne!(told.code, 0);
        let line = told.err.strip_suffix('\n').unwrap();
        assert!(line.contains("program"), "{told:?}");
        let active = ['\n', '\u{7}', '\u{9b}', '\u{202e}', '\u{2066}'];
        assert!(!line.contains(active), "{args:?}: {told:?}");
    }
    daemon.end().await;
}

#[tokio::test]
async fn every_table_has_a_form_for_programs() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = said(&home, &["create", "--name", "nap", "--cpus", "2", "idle"]).out();
    let id = id.trim();
    assert_eq!(said(&home, &["start", "nap"]).out(), "nap\n");
    let running = daemon.client.inspect("nap").await.unwrap();
    let pid = running.pid.unwrap().to_string();

    let table = said(&home, &["ps"]).out();
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(words(lines[0])[..3], ["BOX", "ID", "NAME"]);
    assert_eq!(words(lines[1])[..5], [id, "nap", "idle", "running", &pid]);
    let listed = said(&home, &["ps", "--format", "json"]).json();
    assert_eq!(listed, json!([running]));
    assert_eq!(said(&home, &["ps", "-q"]).out().trim(), id);

    let table = said(&home, &["inspect", "nap"]).out();
    let fields: Vec<_> = table.lines().map(words).collect();
    assert!(fields.contains(&vec!["pid", &pid]) && fields.contains(&vec!["cpus", "2"]));
    let inspected = said(&home, &["inspect", id, "--format", "json"]).json();
    assert_eq!(inspected, json!([running]));

    let table = said(&home, &["metrics"]).out();
    assert!(
        table
            .lines()
            .any(|line| words(line) == ["num_running_boxes", "1"])
    );
    let numbers = said(&home, &["metrics", "--format", "json"]).json();
    assert_eq!(numbers["num_running_boxes"], 1);
    let text = said(&home, &["metrics", "--format", "openmetrics"]).out();
    assert!(text.contains("\nvmm_boxes_running 1\n") && text.ends_with("# EOF\n"));
    let of_box = said(&home, &["metrics", "nap", "--format", "json"]).json();
    assert!(of_box["memory_bytes"].as_u64().unwrap() > 0);
    assert!(
        said(&home, &["metrics", "nap"])
            .out()
            .contains("memory_bytes")
    );
    daemon.end().await;
}

#[tokio::test]
async fn boxes_are_listed_by_what_they_do() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    said(&home, &["run", "-d", "--name", "runs", "idle"]).out();
    said(&home, &["create", "--name", "made", "idle"]).out();
    said(&home, &["run", "--name", "failed", "idle", "false"]);
    let names = |args: &[&str]| -> Vec<String> {
        let listed = said(&home, &[&["ps", "--format", "json"], args].concat()).json();
        let names = listed.as_array().unwrap().iter();
        names
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&[]), ["runs"]);
    assert_eq!(names(&["-a"]), ["runs", "made", "failed"]);
    assert_eq!(names(&["--status", "failed"]), ["failed"]);
    assert_eq!(names(&["--status", "stopped"]), [""; 0]);
    let table = said(&home, &["ps", "--all"]).out();
    assert!(table.contains("failed (1)"), "{table}");
    let refused = said(&home, &["ps", "--status", "asleep"]);
    assert!(refused.err.contains("configured, running"), "{refused:?}");
    daemon.end().await;
}

#[tokio::test]
async fn one_box_that_refuses_does_not_spare_the_others() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for name in ["a", "b"] {
        said(&home, &["run", "-d", "--name", name, "idle"]).out();
    }
    let refused = said(&home, &["rm", "a"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("by force"), "{refused:?}");
    let stopped = said(&home, &["stop", "--time", "5", "nope", "a"]);
    assert_eq!((stopped.code, stopped.out.as_str()), (1, "a\n"));
    assert!(stopped.err.contains("nope"), "{stopped:?}");
    let inspected = said(&home, &["inspect", "a", "nope", "--format", "json"]);
    let found: Value = serde_json::from_str(&inspected.out).unwrap();
    assert_eq!(
        (inspected.code, found[0]["status"].as_str()),
        (1, Some("stopped"))
    );
    let removed = said(&home, &["rm", "-f", "a", "nope", "b"]);
    assert_eq!((removed.code, removed.out.as_str()), (1, "a\nb\n"));
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn a_reader_that_is_gone_does_not_spare_the_boxes() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        said(&home, &["run", "-d", "--name", name, "idle"]).out();
    }
    let unheard = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Said::of(shimd(&home).args(args).args(names).stdout(writer))
    };
    let told = unheard(&["rm", "-f", "nope"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("nope"), "{told:?}");
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn several_boxes_are_stopped_together() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let names = ["c", "a", "b"];
    let file = |name: &str| home.path().join(name);
    let go = file("go");
    for name in names {
        let (up, asked) = (file(name), file(&format!("{name}.asked")));
        let script = format!(
            "trap 'touch {}; while [ ! -e {} ]; do sleep 0.05; done; exit 0' TERM; touch {}; \
             while :; do sleep 0.05; done",
            asked.display(),
            go.display(),
            up.display()
        );
        let request = CreateBoxRequest::of("idle").name(name);
        let request = request.cmd(["sh", "-c", &script]);
        daemon.client.create(&request).await.unwrap();
        daemon.client.start(name).await.unwrap();
        eventually("the payload is up", async || up.exists()).await;
    }
    let mut stop = shimd(&home);
    stop.args(["stop", "--time", "600"]).args(names);
    let stop = stop.stdout(Stdio::piped()).spawn().unwrap();
    // None has ended by then.
    eventually("all are asked", async || {
        let mut asked = names.iter().map(|name| file(&format!("{name}.asked")));
        asked.all(|asked| asked.exists())
    })
    .await;
    fs::write(&go, "").unwrap();
    let output = stop.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "c\na\nb\n");
    daemon.end().await;
}

#[tokio::test]
async fn events_are_told_as_they_happen_until_the_daemon_ends() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    let mut follower = command
        .args(["events", "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let (sender, heard) = mpsc::channel();
    let reader = thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            let event: Value = serde_json::from_str(&line).unwrap();
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let told = (word(&event["box"]["name"]), word(&event["change"]));
            sender.send(told).unwrap();
        }
    });
    // It may not follow yet: until it does, something else happens.
    while heard.try_recv().is_err() {
        said(&home, &["run", "--rm", "idle", "true"]).out();
    }
    said(&home, &["run", "--rm", "--name", "seen", "idle", "true"]).out();
    let changes = iter::from_fn(|| heard.recv_timeout(DEADLINE).ok());
    let of_box = changes.filter(|(name, _)| name == "seen");
    let of_box: Vec<_> = of_box.map(|(_, change)| change).take(4).collect();
    assert_eq!(of_box, ["created", "started", "stopped", "removed"]);
    daemon.end().await;
    assert!(end_of(&mut follower).await.success());
    reader.join().unwrap();
}

#[tokio::test]
async fn colours_are_for_terminals_that_want_them() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    said(&home, &["run", "-d", "idle"]).out();
    let mut list = shimd(&home);
    list.arg("ps");
    assert!(!Said::of(&mut list).out().contains('\x1b'));
    let forced = Said::of(list.env("CLICOLOR_FORCE", "1")).out();
    assert!(forced.contains("\x1b[32mrunning"), "{forced:?}");
    // A log goes to a file here.
    assert!(!logged(&home).contains('\x1b'));
    daemon.end().await;
}

#[tokio::test]
async fn a_terminal_gets_colours_unless_no_color_is_set() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    said(&home, &["run", "-d", "idle"]).out();
    let Some(terminal) = Terminal::open(&home, 120, 20) else {
        return daemon.end().await;
    };
    let list = format!(
        "{} --home {} ps",
        env!("CARGO_BIN_EXE_shimd"),
        home.path().display()
    );
    let is_coloured = || terminal.coloured_text().contains("\x1b[32mrunning");
    terminal.enter(&list);
    terminal
        .shows("the box", |text| text.contains(" running "))
        .await;
    assert!(is_coloured(), "{}", terminal.coloured_text());
    terminal.enter(&format!("clear; NO_COLOR=1 {list}; echo do''ne"));
    terminal
        .shows("the box once more", |text| {
            text.contains(" running ") && text.contains("done")
        })
        .await;
    assert!(!is_coloured(), "{}", terminal.coloured_text());
    daemon.end().await;
}

#[test]
fn help_tells_a_newcomer_where_to_begin() {
    let home = PerTestBoxHome::new();
    let help = said(&home, &["--help"]).out();
    for word in [
        "serve",
        "create",
        "run",
        "start",
        "stop",
        "rm",
        "ps",
        "inspect",
        "metrics",
        "events",
        "top",
        "completions",
        "--home",
        "shimd run idle echo hello",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
    let version = said(&home, &["--version"]).out();
    assert_eq!(version.trim(), concat!("shimd ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_is_misspelt_is_told_with_the_exit_code_of_docker() {
    let home = PerTestBoxHome::new();
    for args in [
        &["strat"][..],
        &["ps", "--al"],
        &["rm"],
        &["stop", "--time", "x", "a"],
        &["stop", "--time", "nan", "a"],
        &["stop", "--time=-1", "a"],
        &["serve", "--listen", "localhost:8099"],
    ] {
        let refused = said(&home, args);
        assert_eq!(refused.code, 125, "{refused:?}");
        assert!(refused.err.contains("--help"), "{refused:?}");
    }
    assert!(said(&home, &["strat"]).err.contains("start"));
    let no_address = said(&home, &["serve", "--listen", "localhost:8099"]);
    assert!(no_address.err.contains("an IP address"), "{no_address:?}");
    let refused = said(&home, &["ps"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("no daemon answers"), "{refused:?}");
    let no_terminal = said(&home, &["top"]);
    assert_eq!(no_terminal.code, 1);
}

#[test]
fn completions_are_there_for_every_shell() {
    let home = PerTestBoxHome::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&home, &["completions", shell]).out();
        assert!(script.contains("inspect"), "{shell}");
        assert!(script.contains("token-file"), "{shell}");
        // What boxes run, and nobody types.
        assert!(!script.contains("Waits to be stopped"), "{shell}");
        assert!(!script.contains("shimd__idle"), "{shell}");
    }
    let mut bash = std::process::Command::new("bash");
    let script = said(&home, &["completions", "bash"]).out();
    let checked = bash.args(["-n", "-c", &script]).status().unwrap();
    assert!(checked.success());
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut list = shimd(&home);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let told = Said::of(list.args(["ps"]).stdout(writer));
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    daemon.end().await;
}
