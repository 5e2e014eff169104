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
    for way in ["q", "Escape", "C-c", "SIGTERM"] {
        terminal.enter("clear; stty -g > $HOME/before; echo be''fore");
        terminal
            .shows("the shell", |text| text.contains("before"))
            .await;
        terminal.enter(&format!(
            "sh -c 'echo $$ > $HOME/pid; exec {top}'; echo code $?; \
             stty -g | cmp - $HOME/before && echo the sa''me"
        ));
        terminal.shows("top", |text| text.contains("zombies")).await;
        match way {
            "SIGTERM" => {
                let pid = std::fs::read_to_string(&pid).unwrap();
                kill(pid.trim().parse().unwrap(), Signal::SIGTERM);
            }
            key => terminal.press(key),
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
async fn it_fits_a_terminal_of_any_size_scrolls_and_heeds_no_color() {
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
    assert!(!coloured.contains("\x1b[32m") && !coloured.contains("\x1b[31m"));
    terminal.press("End");
    terminal
        .shows("the last box", |text| {
            text.contains("box-39") && !text.contains("box-10")
        })
        .await;
    for (width, height) in [(20, 3), (200, 50), (1, 1), (100, 20)] {
        terminal.resize(width, height);
    }
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
