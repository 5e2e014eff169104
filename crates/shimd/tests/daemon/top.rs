use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, run_shimd, words};
use crate::paused_reaper::PausedReaper;
use crate::process::{is_gone, kill, state_of};
use crate::terminal::Terminal;

fn command(home: &PerTestBoxHome) -> String {
    let program = env!("CARGO_BIN_EXE_shimd");
    format!("{program} --home {} top --delay 0.1", home.path().display())
}

/// The escape sequences of tmux for any colour and for red.
const COLOUR: &str = "\x1b[38;5;";
const RED: &str = "\x1b[38;5;1m";

fn line_of(text: &str, word: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.contains(word));
    words(line.unwrap_or_default())
        .into_iter()
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn boxes_reaper_and_zombies_are_updated_live() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    run_shimd(&home, &["run", "-d", "--name", "first", "idle"]).out();
    let Some(terminal) = Terminal::open(&home, 130, 24) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    let running = daemon.client.inspect("first").await.unwrap();
    let pid = running.pid.unwrap();
    terminal
        .wait_for("the box", |text| {
            line_of(text, "first")[..].starts_with(
                &[
                    &*running.box_id,
                    "first",
                    "idle",
                    "running",
                    &pid.to_string(),
                ]
                .map(str::to_owned),
            )
        })
        .await;
    terminal
        .wait_for("the reaper's health, and zombies", |text| {
            line_of(text, "reaper  ")
                .get(1)
                .is_some_and(|word| word == "sweeping,")
                && text.contains("1 shims registered")
                && line_of(text, "zombies") == ["zombies", "0"]
        })
        .await;

    kill(pid, Signal::SIGKILL);
    terminal
        .wait_for("its exit", |text| {
            text.contains("1 failed") && line_of(text, "first").contains(&"failed".to_owned())
        })
        .await;
    let request = CreateBoxRequest::of("idle").name("second");
    daemon.client.create(&request).await.unwrap();
    terminal
        .wait_for("a new box", |text| {
            line_of(text, "second").contains(&"configured".to_owned())
        })
        .await;
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn stuck_reaper_and_its_zombies_are_shown() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = run_shimd(&home, &["run", "-d", "idle"]).out();
    let shim = daemon.client.inspect(id.trim()).await.unwrap().pid.unwrap();
    let Some(terminal) = Terminal::open(&home, 130, 24) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    let Some(paused) = PausedReaper::pause(daemon.pid()) else {
        return daemon.shut_down().await;
    };
    kill(shim, Signal::SIGKILL);
    terminal
        .wait_for("the stuck reaper and a zombie", |text| {
            text.contains("stuck for") && line_of(text, "zombies") == ["zombies", "1"]
        })
        .await;
    assert_eq!(state_of(shim), Some('Z'));
    drop(paused);
    terminal
        .wait_for("all is well", |text| {
            text.contains("sweeping") && line_of(text, "zombies") == ["zombies", "0"]
        })
        .await;
    assert!(is_gone(shim));
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn every_exit_restores_the_terminal() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 100, 20) else {
        return daemon.shut_down().await;
    };
    let top = command(&home);
    let pid = home.path().join("pid");
    for exit in [
        "q", "Escape", "C-c", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP",
    ] {
        terminal.enter("clear; stty -g > $HOME/before; echo be''fore");
        terminal
            .wait_for("the shell", |text| text.contains("before"))
            .await;
        terminal.enter(&format!(
            "sh -c 'echo $$ > $HOME/pid; exec {top}'; echo code $?; \
             stty -g | cmp - $HOME/before && echo the sa''me"
        ));
        terminal
            .wait_for("top", |text| text.contains("zombies"))
            .await;
        match exit.parse::<Signal>() {
            Ok(signal) => {
                let pid = std::fs::read_to_string(&pid).unwrap();
                kill(pid.trim().parse().unwrap(), signal);
            }
            Err(_) => terminal.press(exit),
        }
        terminal
            .wait_for("the shell again", |text| {
                text.contains("before")
                    && text.contains("code 0")
                    && text.contains("the same")
                    && !text.contains("zombies")
            })
            .await;
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn stopped_and_restarted_daemon_is_shown() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 160, 20) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    terminal
        .wait_for("top", |text| text.contains("q quits"))
        .await;
    daemon.shut_down().await;
    terminal
        .wait_for("the failure", |text| {
            text.contains("cannot connect to a daemon")
        })
        .await;
    let daemon = Daemon::start(&home).await;
    terminal
        .wait_for("no failure", |text| {
            text.contains("q quits") && !text.contains("cannot connect to a daemon")
        })
        .await;
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn unresponsive_daemon_is_shown() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 80, 20) else {
        return daemon.shut_down().await;
    };
    let is_sweeping = |text: &str| text.contains("sweeping");
    terminal.enter(&command(&home));
    terminal.wait_for("all is well", is_sweeping).await;
    daemon.signal(Signal::SIGSTOP);
    terminal
        .wait_for("the missing response", |text| {
            text.matches("no response for ").count() == 2 && !is_sweeping(text)
        })
        .await;
    let coloured = terminal.coloured_text();
    assert!(
        coloured.contains(&format!("{RED}no response for ")),
        "{coloured:?}"
    );
    daemon.signal(Signal::SIGCONT);
    terminal
        .wait_for("all is well again", |text| {
            is_sweeping(text) && !text.contains("no response")
        })
        .await;
    terminal.press("q");
    // The ending `top` would read keys that are sent before this.
    terminal
        .wait_for("the shell", |text| !text.contains("reaper"))
        .await;
    daemon.signal(Signal::SIGSTOP);
    terminal.enter(&command(&home));
    terminal
        .wait_for("the failure to connect", |text| {
            text.contains("does not respond")
        })
        .await;
    daemon.signal(Signal::SIGCONT);
    daemon.shut_down().await;
}

#[tokio::test]
async fn most_important_information_is_shown_at_every_size() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for i in 10..40 {
        let request = CreateBoxRequest::of("idle").name(format!("box-{i}"));
        daemon.client.create(&request).await.unwrap();
    }
    let args = ["run", "--name", "broken", "-w", "/nonexistent", "idle"];
    assert_eq!(run_shimd(&home, &args).code, 125);
    let Some(terminal) = Terminal::open(&home, 120, 20) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    terminal
        .wait_for("top", |text| text.contains("box-10"))
        .await;
    let error = "the working directory /nonexistent";
    for (width, height, titles, remark, boxes) in [
        (
            120,
            20,
            "BOX ID NAME IMAGE STATUS PID CPU% MEM AGE REMARK",
            error,
            14,
        ),
        (
            80,
            24,
            "NAME STATUS PID CPU% MEM AGE REMARK",
            "the working directory",
            18,
        ),
        (40, 8, "NAME STATUS REMARK", "the working dire", 3),
    ] {
        terminal.resize(width, height);
        terminal
            .wait_for(&format!("the columns at {width}x{height}"), |text| {
                line_of(text, "NAME") == words(titles)
            })
            .await;
        terminal.press("End");
        terminal
            .wait_for(&format!("the end at {width}x{height}"), |text| {
                let listed = text.lines().filter(|line| line.contains("box-"));
                text.contains("1 failed")
                    && text.contains("sweeping, 0 respawns, 0 vanished")
                    && text.lines().all(|line| line.chars().count() <= width.into())
                    // As many boxes as fit.
                    && listed.count() == boxes - 1
                    && text.lines().any(|line| {
                        line.contains("broken") && line.contains("failed") && line.contains(remark)
                    })
            })
            .await;
    }
    terminal.resize(20, 3);
    let zombies = |text: &str| text.contains("zombies");
    terminal.wait_for("a line", zombies).await;
    terminal.resize(1, 1);
    let letter = |text: &str| text.trim().chars().count() == 1;
    terminal.wait_for("a letter", letter).await;
    terminal.resize(120, 20);
    terminal.wait_for("all again", zombies).await;
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn running_boxes_show_their_cpu_and_memory() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let script = "while :; do :; done";
    let busy = ["run", "-d", "--name", "busy", "idle", "sh", "-c", script];
    run_shimd(&home, &busy).out();
    let request = CreateBoxRequest::of("idle").name("other");
    daemon.client.create(&request).await.unwrap();
    let Some(terminal) = Terminal::open(&home, 130, 24) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    terminal
        .wait_for("CPU and memory", |text| {
            let line = line_of(text, "busy");
            let cpu = line.get(5).and_then(|cell| cell.parse::<f64>().ok());
            let memory = line.get(6).and_then(|cell| cell.strip_suffix('M'));
            let memory = memory.and_then(|cell| cell.parse::<f64>().ok());
            cpu.is_some_and(|cpu| cpu > 0.0) && memory.is_some_and(|memory| memory > 0.0)
        })
        .await;
    // Neither a pid nor a load.
    assert_eq!(line_of(&terminal.text(), "other").len(), 5);
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn enter_shows_the_executions_and_the_output_of_the_selected_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for name in ["first", "second"] {
        let script =
            format!("i=0; while :; do i=$((i + 1)); echo line of {name} $i; sleep 0.1; done");
        run_shimd(
            &home,
            &["run", "-d", "--name", name, "idle", "sh", "-c", &script],
        )
        .out();
    }
    run_shimd(&home, &["exec", "-d", "second", "sleep", "1000"]).out();
    assert_eq!(
        run_shimd(&home, &["exec", "second", "sh", "-c", "exit 3"]).code,
        3
    );
    let Some(terminal) = Terminal::open(&home, 100, 24) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    let has_line = |text: &str, start: &str| text.lines().any(|line| line.starts_with(start));
    terminal
        .wait_for("the boxes", |text| text.contains("second"))
        .await;
    terminal.press("Enter");
    terminal
        .wait_for("the output of the first box", |text| {
            has_line(text, "EXECUTIONS 0") && has_line(text, "line of first ")
        })
        .await;
    terminal.press("Down");
    terminal
        .wait_for("the executions and the output of the second", |text| {
            let executions: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("exec-"))
                .collect();
            has_line(text, "EXECUTIONS 2")
                && executions.len() == 2
                && executions[0].contains("code 3")
                && executions[1].contains("running")
                && has_line(text, "line of second ")
                && !has_line(text, "line of first ")
        })
        .await;
    terminal.press("Escape");
    terminal
        .wait_for("the list alone", |text| {
            text.contains("Enter shows details") && !text.contains("EXECUTIONS")
        })
        .await;
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn box_without_a_name_is_shown_by_its_id() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let id = made.unwrap().box_id;
    let Some(terminal) = Terminal::open(&home, 80, 20) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&command(&home));
    terminal.wait_for("its id", |text| text.contains(&id)).await;
    terminal.press("q");
    daemon.shut_down().await;
}

#[tokio::test]
async fn list_scrolls_and_no_color_is_honoured() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for i in 10..40 {
        let request = CreateBoxRequest::of("idle").name(format!("box-{i}"));
        daemon.client.create(&request).await.unwrap();
    }
    let Some(terminal) = Terminal::open(&home, 100, 20) else {
        return daemon.shut_down().await;
    };
    terminal.enter(&format!("NO_COLOR=1 {}", command(&home)));
    terminal
        .wait_for("the first boxes", |text| {
            text.contains("box-10") && !text.contains("box-39")
        })
        .await;
    let coloured = terminal.coloured_text();
    assert!(!coloured.contains(COLOUR), "{coloured:?}");
    terminal.press("End");
    terminal
        .wait_for("the last box", |text| {
            text.contains("box-39") && !text.contains("box-10")
        })
        .await;
    terminal.press("Home");
    terminal
        .wait_for("the first again", |text| text.contains("box-10"))
        .await;
    terminal.press("q");
    terminal
        .wait_for("the shell", |text| !text.contains("zombies"))
        .await;
    daemon.shut_down().await;
}
