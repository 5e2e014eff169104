use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, said, words};
use crate::held_reaper::HeldReaper;
use crate::process::{is_gone, kill, state_of};
use crate::terminal::Terminal;

fn command(home: &PerTestBoxHome) -> String {
    let program = env!("CARGO_BIN_EXE_shimd");
    format!("{program} --home {} top --delay 0.1", home.path().display())
}

/// As tmux tells of it.
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
async fn boxes_the_reaper_and_zombies_are_seen_live() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    said(&home, &["run", "-d", "--name", "first", "idle"]).out();
    let Some(terminal) = Terminal::open(&home, 130, 24) else {
        return daemon.end().await;
    };
    terminal.enter(&command(&home));
    let running = daemon.client.inspect("first").await.unwrap();
    let pid = running.pid.unwrap();
    terminal
        .shows("the box", |text| {
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
        .shows("the reaper's health, and zombies", |text| {
            line_of(text, "reaper  ")
                .get(1)
                .is_some_and(|word| word == "sweeping,")
                && text.contains("1 shims registered")
                && line_of(text, "zombies") == ["zombies", "0"]
        })
        .await;

    kill(pid, Signal::SIGKILL);
    terminal
        .shows("its end", |text| {
            text.contains("1 failed") && line_of(text, "first").contains(&"failed".to_owned())
        })
        .await;
    let request = CreateBoxRequest::of("idle").name("second");
    daemon.client.create(&request).await.unwrap();
    terminal
        .shows("a new box", |text| {
            line_of(text, "second").contains(&"configured".to_owned())
        })
        .await;
    terminal.press("q");
    daemon.end().await;
}

#[tokio::test]
async fn a_stuck_reaper_and_its_zombies_are_seen() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = said(&home, &["run", "-d", "idle"]).out();
    let shim = daemon.client.inspect(id.trim()).await.unwrap().pid.unwrap();
    let Some(terminal) = Terminal::open(&home, 130, 24) else {
        return daemon.end().await;
    };
    terminal.enter(&command(&home));
    let Some(held) = HeldReaper::of(daemon.pid()) else {
        return daemon.end().await;
    };
    kill(shim, Signal::SIGKILL);
    terminal
        .shows("the stuck reaper and a zombie", |text| {
            text.contains("stuck for") && line_of(text, "zombies") == ["zombies", "1"]
        })
        .await;
    assert_eq!(state_of(shim), Some('Z'));
    drop(held);
    terminal
        .shows("all is well", |text| {
            text.contains("sweeping") && line_of(text, "zombies") == ["zombies", "0"]
        })
        .await;
    assert!(is_gone(shim));
    terminal.press("q");
    daemon.end().await;
}

#[tokio::test]
async fn every_way_out_leaves_the_terminal_as_it_was() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 100, 20) else {
        return daemon.end().await;
    };
    let top = command(&home);
    let pid = home.path().join("pid");
    for way in [
        "q", "Escape", "C-c", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP",
    ] {
        terminal.enter("clear; stty -g > $HOME/before; echo be''fore");
        terminal
            .shows("the shell", |text| text.contains("before"))
            .await;
        terminal.enter(&format!(
            "sh -c 'echo $$ > $HOME/pid; exec {top}'; echo code $?; \
             stty -g | cmp - $HOME/before && echo the sa''me"
        ));
        terminal.shows("top", |text| text.contains("zombies")).await;
        match way.parse::<Signal>() {
            Ok(signal) => {
                let pid = std::fs::read_to_string(&pid).unwrap();
                kill(pid.trim().parse().unwrap(), signal);
            }
            Err(_) => terminal.press(way),
        }
        terminal
            .shows("the shell again", |text| {
                text.contains("before")
                    && text.contains("code 0")
                    && text.contains("the same")
                    && !text.contains("zombies")
            })
            .await;
    }
    daemon.end().await;
}

#[tokio::test]
async fn a_daemon_that_goes_away_and_comes_back_is_told() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 160, 20) else {
        return daemon.end().await;
    };
    terminal.enter(&command(&home));
    terminal.shows("top", |text| text.contains("q quits")).await;
    daemon.end().await;
    terminal
        .shows("the trouble", |text| text.contains("no daemon answers"))
        .await;
    let daemon = Daemon::start(&home).await;
    terminal
        .shows("no trouble", |text| {
            text.contains("q quits") && !text.contains("no daemon answers")
        })
        .await;
    terminal.press("q");
    daemon.end().await;
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_seen() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let Some(terminal) = Terminal::open(&home, 80, 20) else {
        return daemon.end().await;
    };
    let sweeps = |text: &str| text.contains("sweeping");
    terminal.enter(&command(&home));
    terminal.shows("all is well", sweeps).await;
    daemon.signal(Signal::SIGSTOP);
    terminal
        .shows("the silence", |text| {
            text.matches("no answer for ").count() == 2 && !sweeps(text)
        })
        .await;
    let coloured = terminal.coloured_text();
    assert!(
        coloured.contains(&format!("{RED}no answer for ")),
        "{coloured:?}"
    );
    daemon.signal(Signal::SIGCONT);
    terminal
        .shows("all is well again", |text| {
            sweeps(text) && !text.contains("no answer")
        })
        .await;
    terminal.press("q");
    // What is typed before would be taken by the one that ends.
    terminal
        .shows("that it has ended", |text| !text.contains("reaper"))
        .await;
    daemon.signal(Signal::SIGSTOP);
    terminal.enter(&command(&home));
    terminal
        .shows("that there is nothing to see", |text| {
            text.contains("does not answer")
        })
        .await;
    daemon.signal(Signal::SIGCONT);
    daemon.end().await;
}

#[tokio::test]
async fn what_matters_most_is_seen_at_every_size() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for i in 10..40 {
        let request = CreateBoxRequest::of("idle").name(format!("box-{i}"));
        daemon.client.create(&request).await.unwrap();
    }
    let nowhere = ["run", "--name", "broken", "-w", "/nonexistent", "idle"];
    assert_eq!(said(&home, &nowhere).code, 125);
    let Some(terminal) = Terminal::open(&home, 120, 20) else {
        return daemon.end().await;
    };
    terminal.enter(&command(&home));
    terminal.shows("top", |text| text.contains("box-10")).await;
    let error = "the working directory /nonexistent";
    for (width, height, titles, remark, boxes) in [
        (
            120,
            20,
            "BOX ID NAME IMAGE STATUS PID AGE REMARK",
            error,
            14,
        ),
        (80, 24, "NAME IMAGE STATUS PID AGE REMARK", error, 18),
        (40, 8, "NAME STATUS REMARK", "the working dire", 3),
    ] {
        terminal.resize(width, height);
        terminal
            .shows(&format!("the columns at {width}x{height}"), |text| {
                line_of(text, "NAME") == words(titles)
            })
            .await;
        terminal.press("End");
        terminal
            .shows(&format!("the end at {width}x{height}"), |text| {
                let listed = text.lines().filter(|line| line.contains("box-"));
                text.contains("1 failed")
                    && text.contains("sweeping, 0 respawns, 0 vanished")
                    && text.lines().all(|line| line.chars().count() <= width.into())
                    // The last ones, as many as there is room for.
                    && listed.count() == boxes - 1
                    && text.lines().any(|line| {
                        line.contains("broken") && line.contains("failed") && line.contains(remark)
                    })
            })
            .await;
    }
    terminal.resize(20, 3);
    let zombies = |text: &str| text.contains("zombies");
    terminal.shows("a line", zombies).await;
    terminal.resize(1, 1);
    let letter = |text: &str| text.trim().chars().count() == 1;
    terminal.shows("a letter", letter).await;
    terminal.resize(120, 20);
    terminal.shows("all again", zombies).await;
    terminal.press("q");
    daemon.end().await;
}

#[tokio::test]
async fn a_box_without_a_name_is_called_by_its_id() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let id = made.unwrap().box_id;
    let Some(terminal) = Terminal::open(&home, 80, 20) else {
        return daemon.end().await;
    };
    terminal.enter(&command(&home));
    terminal.shows("its id", |text| text.contains(&id)).await;
    terminal.press("q");
    daemon.end().await;
}

#[tokio::test]
async fn it_scrolls_and_heeds_no_color() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for i in 10..40 {
        let request = CreateBoxRequest::of("idle").name(format!("box-{i}"));
        daemon.client.create(&request).await.unwrap();
    }
    let Some(terminal) = Terminal::open(&home, 100, 20) else {
        return daemon.end().await;
    };
    terminal.enter(&format!("NO_COLOR=1 {}", command(&home)));
    terminal
        .shows("the first boxes", |text| {
            text.contains("box-10") && !text.contains("box-39")
        })
        .await;
    let coloured = terminal.coloured_text();
    assert!(!coloured.contains(COLOUR), "{coloured:?}");
    terminal.press("End");
    terminal
        .shows("the last box", |text| {
            text.contains("box-39") && !text.contains("box-10")
        })
        .await;
    terminal.press("Home");
    terminal
        .shows("the first again", |text| text.contains("box-10"))
        .await;
    terminal.press("q");
    terminal
        .shows("the shell", |text| !text.contains("zombies"))
        .await;
    daemon.end().await;
}
