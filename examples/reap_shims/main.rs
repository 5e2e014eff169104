//! Shims die in every way a process can; the reaper collects each of them.
//!
//! `--without-reaper` plays the same deaths with nobody to collect them.

mod cast;
mod death;
mod options;
mod proc;
mod table;

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::signal::kill;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{CollectedBy, ReaperStats, ShimReaper, ShutdownReport};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use cast::Cast;
use options::{Options, Parsed};
use table::Table;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long zombies are watched when nobody collects them.
const WITHOUT_REAPER: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Help) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\n{}", options::HELP);
            return ExitCode::from(2);
        }
    };
    let played = if options.without_reaper {
        without_reaper(&options).await.map(|()| true)
    } else {
        with_reaper(&options).await
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True if nothing is left behind.
async fn with_reaper(options: &Options) -> Result<bool> {
    // In a VMM runtime this is the runtime's own token.
    let shutdown = CancellationToken::new();
    let reaper = ShimReaper::builder()
        .shutdown_token(shutdown.clone())
        .start();
    let mut exits = reaper.exits();

    println!(
        "{} shims, and a reaper that collects them:\n",
        options.shims
    );
    let mut table = Table::new();
    let mut cast = Cast::default();
    for i in 0..options.shims {
        let (pid, death) = cast.start(i, Some(&reaper)).await?;
        table.add(pid, death);
    }

    let mut refresh = tokio::time::interval(table.cadence());
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupted = false;
    while !table.is_settled() && !interrupted {
        tokio::select! {
            Some(exit) = exits.next() => table.ended(&exit),
            _ = refresh.tick() => table.refresh()?,
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                interrupted = true;
            }
        }
    }
    table.finish()?;

    shutdown.cancel();
    let report = reaper.shutdown().await;
    let killed = kill_still_running(&report)?;
    let zombies = proc::zombie_children()?;
    print_summary(&report, &reaper.stats(), killed);

    let unresolved = table.unresolved().saturating_sub(killed);
    match (zombies.len(), unresolved) {
        (0, 0) => println!("\nNo zombie is left, and every registration was resolved."),
        (zombies, unresolved) => {
            println!("\n{zombies} zombies and {unresolved} unresolved registrations are left.")
        }
    }
    Ok(zombies.is_empty() && unresolved == 0)
}

async fn without_reaper(options: &Options) -> Result<()> {
    println!("{} shims, and nobody who collects them:\n", options.shims);
    let mut table = Table::new();
    let mut cast = Cast::default();
    for i in 0..options.shims {
        let (pid, death) = cast.start(i, None).await?;
        table.add(pid, death);
    }
    let over = tokio::time::sleep(WITHOUT_REAPER);
    tokio::pin!(over);
    let mut refresh = tokio::time::interval(table.cadence());
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut over => break,
            _ = refresh.tick() => table.refresh()?,
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                break;
            }
        }
    }
    table.finish()?;
    let zombies = proc::zombie_children()?;
    println!(
        "\n{} of {} shims are zombies, and would be for as long as this process lives.",
        zombies.len(),
        options.shims,
    );
    for pid in table.pids() {
        // Those that an owner has waited for are gone already.
        let pid = as_pid(pid)?;
        let _ = kill(pid, SIGKILL);
        let _ = waitpid(pid, None);
    }
    Ok(())
}

/// What a runtime does after the reaper's shutdown with shims that must not outlive it. They are
/// children of ours that nobody else waits for any more.
fn kill_still_running(report: &ShutdownReport) -> Result<usize> {
    for pid in &report.still_running {
        let pid = as_pid(*pid)?;
        kill(pid, SIGKILL)?;
        waitpid(pid, None)?;
    }
    Ok(report.still_running.len())
}

fn print_summary(report: &ShutdownReport, stats: &ReaperStats, killed: usize) {
    println!(
        "\nshutdown   {} drained, {} still running{}",
        report.drained,
        report.still_running.len(),
        if killed > 0 {
            ", killed and collected"
        } else {
            ""
        },
    );
    println!(
        "stats      {} reaped, {} vanished (somebody else collected them), {} registered",
        stats.reaped_total, stats.vanished_total, stats.registered,
    );
    println!(
        "           {} sweeps, {} respawns, {} without a pidfd",
        stats.sweeps_completed, stats.respawns_total, stats.without_pidfd,
    );
}

fn as_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .map(Pid::from_raw)
        .map_err(io::Error::other)
}

/// For people.
fn name(collected_by: CollectedBy) -> &'static str {
    match collected_by {
        CollectedBy::Reaper => "the reaper",
        CollectedBy::Owner => "its owner",
        _ => "others",
    }
}
