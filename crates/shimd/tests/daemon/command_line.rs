use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::iter;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, read_log, run_shimd, shimd, words};
use crate::process::{TEST_TIMEOUT, eventually, wait_for_exit};
use crate::terminal::Terminal;

#[tokio::test]
async fn messages_contain_no_control_characters() {
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
        let output = run_shimd(&home, args);
        assert_ne!(output.code, 0);
        let line = output.err.strip_suffix('\n').unwrap();
        assert!(line.contains("program"), "{output:?}");
        let active = ['\n', '\u{7}', '\u{9b}', '\u{202e}', '\u{2066}'];
        assert!(!line.contains(active), "{args:?}: {output:?}");
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn every_table_is_available_as_json() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = run_shimd(&home, &["create", "--name", "nap", "--cpus", "2", "idle"]).out();
    let id = id.trim();
    assert_eq!(run_shimd(&home, &["start", "nap"]).out(), "nap\n");
    let running = daemon.client.inspect("nap").await.unwrap();
    let pid = running.pid.unwrap().to_string();

    let table = run_shimd(&home, &["ps"]).out();
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(words(lines[0])[..3], ["BOX", "ID", "NAME"]);
    assert_eq!(words(lines[1])[..5], [id, "nap", "idle", "running", &pid]);
    let listed = run_shimd(&home, &["ps", "--format", "json"]).json();
    assert_eq!(listed, json!([running]));
    assert_eq!(run_shimd(&home, &["ps", "-q"]).out().trim(), id);

    let table = run_shimd(&home, &["inspect", "nap"]).out();
    let fields: Vec<_> = table.lines().map(words).collect();
    assert!(fields.contains(&vec!["pid", &pid]) && fields.contains(&vec!["cpus", "2"]));
    let inspected = run_shimd(&home, &["inspect", id, "--format", "json"]).json();
    assert_eq!(inspected, json!([running]));

    let table = run_shimd(&home, &["metrics"]).out();
    assert!(
        table
            .lines()
            .any(|line| words(line) == ["num_running_boxes", "1"])
    );
    let numbers = run_shimd(&home, &["metrics", "--format", "json"]).json();
    assert_eq!(numbers["num_running_boxes"], 1);
    let text = run_shimd(&home, &["metrics", "--format", "openmetrics"]).out();
    assert!(text.contains("\nvmm_boxes_running 1\n") && text.ends_with("# EOF\n"));
    let of_box = run_shimd(&home, &["metrics", "nap", "--format", "json"]).json();
    assert!(of_box["memory_bytes"].as_u64().unwrap() > 0);
    assert!(
        run_shimd(&home, &["metrics", "nap"])
            .out()
            .contains("memory_bytes")
    );
    daemon.shut_down().await;
}

#[tokio::test]
async fn boxes_are_listed_by_status() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    run_shimd(&home, &["run", "-d", "--name", "runs", "idle"]).out();
    run_shimd(&home, &["create", "--name", "made", "idle"]).out();
    run_shimd(&home, &["run", "--name", "failed", "idle", "false"]);
    let names = |args: &[&str]| -> Vec<String> {
        let listed = run_shimd(&home, &[&["ps", "--format", "json"], args].concat()).json();
        let names = listed.as_array().unwrap().iter();
        names
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&[]), ["runs"]);
    assert_eq!(names(&["-a"]), ["runs", "made", "failed"]);
    assert_eq!(names(&["--status", "failed"]), ["failed"]);
    assert_eq!(names(&["--status", "stopped"]), [""; 0]);
    let table = run_shimd(&home, &["ps", "--all"]).out();
    assert!(table.contains("failed (1)"), "{table}");
    let refused = run_shimd(&home, &["ps", "--status", "asleep"]);
    assert!(refused.err.contains("configured, running"), "{refused:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn failure_for_one_box_does_not_stop_the_others() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for name in ["a", "b"] {
        run_shimd(&home, &["run", "-d", "--name", name, "idle"]).out();
    }
    let refused = run_shimd(&home, &["rm", "a"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("by force"), "{refused:?}");
    let stopped = run_shimd(&home, &["stop", "--time", "5", "nope", "a"]);
    assert_eq!((stopped.code, stopped.out.as_str()), (1, "a\n"));
    assert!(stopped.err.contains("nope"), "{stopped:?}");
    let inspected = run_shimd(&home, &["inspect", "a", "nope", "--format", "json"]);
    let found: Value = serde_json::from_str(&inspected.out).unwrap();
    assert_eq!(
        (inspected.code, found[0]["status"].as_str()),
        (1, Some("stopped"))
    );
    let removed = run_shimd(&home, &["rm", "-f", "a", "nope", "b"]);
    assert_eq!((removed.code, removed.out.as_str()), (1, "a\nb\n"));
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.shut_down().await;
}

#[tokio::test]
async fn closed_stdout_does_not_stop_the_operation() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        run_shimd(&home, &["run", "-d", "--name", name, "idle"]).out();
    }
    let run_with_closed_stdout = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        CommandOutput::of(shimd(&home).args(args).args(names).stdout(writer))
    };
    let output = run_with_closed_stdout(&["rm", "-f", "nope"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err.contains("nope"), "{output:?}");
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.shut_down().await;
}

#[tokio::test]
async fn boxes_are_stopped_concurrently() {
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
    // No box has ended yet.
    eventually("all boxes are asked to stop", async || {
        let mut asked = names.iter().map(|name| file(&format!("{name}.asked")));
        asked.all(|asked| asked.exists())
    })
    .await;
    fs::write(&go, "").unwrap();
    let output = stop.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "c\na\nb\n");
    daemon.shut_down().await;
}

#[tokio::test]
async fn events_are_printed_live_until_the_daemon_ends() {
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
            let output = (word(&event["box"]["name"]), word(&event["change"]));
            sender.send(output).unwrap();
        }
    });
    // Creates events until the follower prints one: it may not have subscribed yet.
    while heard.try_recv().is_err() {
        run_shimd(&home, &["run", "--rm", "idle", "true"]).out();
    }
    run_shimd(&home, &["run", "--rm", "--name", "seen", "idle", "true"]).out();
    let changes = iter::from_fn(|| heard.recv_timeout(TEST_TIMEOUT).ok());
    let of_box = changes.filter(|(name, _)| name == "seen");
    let of_box: Vec<_> = of_box.map(|(_, change)| change).take(5).collect();
    let expected = ["created", "starting", "started", "stopped", "removed"];
    assert_eq!(of_box, expected);
    daemon.shut_down().await;
    assert!(wait_for_exit(&mut follower).await.success());
    reader.join().unwrap();
}

#[tokio::test]
async fn output_to_a_pipe_has_no_colours_unless_forced() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    run_shimd(&home, &["run", "-d", "idle"]).out();
    let mut list = shimd(&home);
    list.arg("ps");
    assert!(!CommandOutput::of(&mut list).out().contains('\x1b'));
    let forced = CommandOutput::of(list.env("CLICOLOR_FORCE", "1")).out();
    assert!(forced.contains("\x1b[32mrunning"), "{forced:?}");
    // The log of this daemon goes to a file.
    assert!(!read_log(&home).contains('\x1b'));
    daemon.shut_down().await;
}

#[tokio::test]
async fn output_to_a_terminal_has_colours_unless_no_color_is_set() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    run_shimd(&home, &["run", "-d", "idle"]).out();
    let Some(terminal) = Terminal::open(&home, 120, 20) else {
        return daemon.shut_down().await;
    };
    let list = format!(
        "{} --home {} ps",
        env!("CARGO_BIN_EXE_shimd"),
        home.path().display()
    );
    let is_coloured = || terminal.coloured_text().contains("\x1b[32mrunning");
    terminal.enter(&list);
    terminal
        .wait_for("the box", |text| text.contains(" running "))
        .await;
    assert!(is_coloured(), "{}", terminal.coloured_text());
    terminal.enter(&format!("clear; NO_COLOR=1 {list}; echo do''ne"));
    terminal
        .wait_for("the box once more", |text| {
            text.contains(" running ") && text.contains("done")
        })
        .await;
    assert!(!is_coloured(), "{}", terminal.coloured_text());
    daemon.shut_down().await;
}

#[test]
fn help_lists_commands_and_examples() {
    let home = PerTestBoxHome::new();
    let help = run_shimd(&home, &["--help"]).out();
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
    let version = run_shimd(&home, &["--version"]).out();
    assert_eq!(version.trim(), concat!("shimd ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn invalid_arguments_have_the_exit_code_of_docker() {
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
        let refused = run_shimd(&home, args);
        assert_eq!(refused.code, 125, "{refused:?}");
        assert!(refused.err.contains("--help"), "{refused:?}");
    }
    assert!(run_shimd(&home, &["strat"]).err.contains("start"));
    let no_address = run_shimd(&home, &["serve", "--listen", "localhost:8099"]);
    assert!(no_address.err.contains("an IP address"), "{no_address:?}");
    let refused = run_shimd(&home, &["ps"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("cannot connect to a daemon"),
        "{refused:?}"
    );
    let no_terminal = run_shimd(&home, &["top"]);
    assert_eq!(no_terminal.code, 1);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let home = PerTestBoxHome::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run_shimd(&home, &["completions", shell]).out();
        assert!(script.contains("inspect"), "{shell}");
        assert!(script.contains("token-file"), "{shell}");
        // The hidden command of the image `idle`.
        assert!(!script.contains("Sleep until a signal"), "{shell}");
        assert!(!script.contains("shimd__idle"), "{shell}");
    }
    let mut bash = std::process::Command::new("bash");
    let script = run_shimd(&home, &["completions", "bash"]).out();
    let checked = bash.args(["-n", "-c", &script]).status().unwrap();
    assert!(checked.success());
}

#[test]
fn every_visible_command_has_a_manual_page() {
    let home = PerTestBoxHome::new();
    let help = run_shimd(&home, &["--help"]).out();
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| format!("shimd-{}.1", words(line)[0]));
    let of_image = [
        "shimd-image-build.1",
        "shimd-image-ls.1",
        "shimd-image-rm.1",
    ];
    let others = of_image.into_iter().chain(["shimd.1"]).map(str::to_owned);
    let expected: BTreeSet<_> = commands.chain(others).collect();
    assert!(expected.contains("shimd-serve.1"), "{help}");

    let dir = home.path().join("man");
    run_shimd(&home, &["man", dir.to_str().unwrap()]).out();
    let pages = fs::read_dir(&dir).unwrap();
    let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    assert_eq!(pages.collect::<BTreeSet<_>>(), expected);
    let serve = fs::read_to_string(dir.join("shimd-serve.1")).unwrap();
    for text in ["\n.SH IMAGES\n", "SHIMD_HOME", "\n  \"pids\": 64,\n"] {
        assert!(serve.contains(text), "{text:?} is not in:\n{serve}");
    }
    let refused = run_shimd(&home, &["man", "/dev/null/man"]);
    for text in ["/dev/null/man", "choose a directory", "Not a directory"] {
        assert!(refused.err.contains(text), "{refused:?}");
    }
}

#[tokio::test]
async fn broken_pipe_is_a_success() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut list = shimd(&home);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = CommandOutput::of(list.args(["ps"]).stdout(writer));
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    daemon.shut_down().await;
}
