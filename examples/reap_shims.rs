//! Shims die in five ways, and the reaper reaps each of them. With `--without-reaper` they die in the
//! same ways, and most of them stay zombies.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use futures::StreamExt;
use nix::sys::signal::{Signal::SIGKILL, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{ReapedBy, ShimReaper, SpawnOptions};
use tokio::time::sleep;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
Starts child processes as shims, and shows how they die.

Usage: cargo run --example reap_shims -- [--shims N] [--without-reaper]

  --shims N         number of shims, 1 to 10000 (default 8)
  --without-reaper  start no reaper

Exit status: 0 if no zombie is left or no reaper was started, 1 otherwise, 2 for an invalid argument.
";

/// The way in which a shim dies. Shims take turns.
#[derive(Clone, Copy)]
enum Death {
    Exits,
    Aborts,
    IsKilled,
    IsDropped,
    HasOwner,
}

const DEATHS: [(Death, &str); 5] = [
    (Death::Exits, "exits"),
    (Death::Aborts, "aborts"),
    (Death::IsKilled, "is killed by its pid"),
    (Death::IsDropped, "is dropped with its handle"),
    (Death::HasOwner, "exits, its owner waits"),
];

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let (mut shims, mut with_reaper) = (8, true);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let count = if arg == "--shims" { args.next() } else { None };
        match (arg.as_str(), count.and_then(|count| count.parse().ok())) {
            ("--shims", Some(count @ 1..=10_000)) => shims = count,
            ("--without-reaper", _) => with_reaper = false,
            ("--help" | "-h", _) => {
                print!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => {
                eprint!("invalid argument {arg}\n\n{USAGE}");
                return Ok(ExitCode::from(2));
            }
        }
    }
    if with_reaper {
        reap(shims).await
    } else {
        leave_zombies(shims).await
    }
}

async fn reap(count: usize) -> Result<ExitCode> {
    let reaper = ShimReaper::builder().start();
    let mut exits = reaper.exits();
    let mut deaths = HashMap::new();
    for i in 0..count {
        let (death, description) = DEATHS[i % DEATHS.len()];
        let pid = start(&reaper, death, i).await?;
        deaths.insert(pid, description);
    }
    println!(
        "{:>8}  {:<27} {:<10} REAPED BY",
        "PID", "HOW IT DIES", "EXIT"
    );
    for _ in 0..count {
        let exit = exits.next().await.ok_or("the reaper has stopped")?;
        let status = match (exit.code(), exit.signal()) {
            (Some(code), _) => format!("code {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "unknown".to_owned(),
        };
        let reaped_by = match exit.reaped_by {
            ReapedBy::Reaper => "the reaper",
            _ => "its owner",
        };
        println!(
            "{:>8}  {:<27} {status:<10} {reaped_by}",
            exit.pid, deaths[&exit.pid]
        );
    }
    let report = reaper.shutdown().await;
    let zombies = deaths.keys().filter(|pid| is_zombie(**pid)).count();
    let stats = reaper.stats();
    println!(
        "\n{} reaped, {} reaped by their owners, {} still running, {zombies} zombies",
        stats.reaped_total,
        stats.vanished_total,
        report.still_running.len(),
    );
    Ok(if zombies == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts shim number `i`, and returns its pid.
async fn start(reaper: &ShimReaper, death: Death, i: usize) -> Result<u32> {
    let mut program = program(death, i);
    let delay = delay(i);
    let pid = match death {
        // The handles are dropped here: the reaper reaps the shims all the same.
        Death::Exits | Death::Aborts => reaper.spawn(program)?.id(),
        Death::IsKilled => {
            let pid = reaper.spawn(program)?.id();
            tokio::spawn(kill_after(delay, pid));
            pid
        }
        Death::IsDropped => {
            let options = SpawnOptions::new().kill_on_drop(true);
            let shim = reaper.spawn_with(program, options)?;
            let pid = shim.id();
            tokio::spawn(async move {
                sleep(delay).await;
                drop(shim);
            });
            pid
        }
        Death::HasOwner => {
            let mut child = program.spawn()?;
            let pid = child.id();
            drop(reaper.register(pid)?);
            tokio::task::spawn_blocking(move || child.wait());
            pid
        }
    };
    Ok(pid)
}

async fn leave_zombies(count: usize) -> Result<ExitCode> {
    let mut shims = Vec::new();
    for i in 0..count {
        let (death, description) = DEATHS[i % DEATHS.len()];
        let mut child = program(death, i).spawn()?;
        let pid = child.id();
        shims.push((pid, description));
        match death {
            Death::IsKilled | Death::IsDropped => _ = tokio::spawn(kill_after(delay(i), pid)),
            Death::HasOwner => _ = tokio::task::spawn_blocking(move || child.wait()),
            _ => {}
        }
    }
    sleep(Duration::from_secs(3)).await;
    println!("{:>8}  {:<27} STATE", "PID", "HOW IT DIES");
    for (pid, description) in &shims {
        let state = if is_zombie(*pid) { "zombie" } else { "gone" };
        println!("{pid:>8}  {description:<27} {state}");
    }
    shims.retain(|(pid, _)| is_zombie(*pid));
    println!(
        "\n{} of {count} shims are zombies until this process exits",
        shims.len()
    );
    for (pid, _) in shims {
        waitpid(Pid::from_raw(pid.cast_signed()), None)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn program(death: Death, i: usize) -> Command {
    let seconds = delay(i).as_secs_f64();
    let script = match death {
        Death::Exits | Death::HasOwner => format!("sleep {seconds}; exit {}", i % 100),
        Death::Aborts => format!("sleep {seconds}; ulimit -c 0; kill -ABRT $$"),
        Death::IsKilled | Death::IsDropped => "exec sleep 1000".to_owned(),
    };
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    command
}

fn delay(i: usize) -> Duration {
    Duration::from_millis(600 + 120 * (i as u64 % 12))
}

async fn kill_after(delay: Duration, pid: u32) {
    sleep(delay).await;
    let _ = kill(Pid::from_raw(pid.cast_signed()), SIGKILL);
}

fn is_zombie(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains("State:\tZ")
}
