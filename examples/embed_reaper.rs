//! The reaper inside another program: the program spawns shims, forgets them, and never waits for
//! them.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use shim_reaper::ShimReaper;
use tokio_util::sync::CancellationToken;

/// A daemon that uses the reaper.
struct Daemon {
    reaper: ShimReaper,
    shutdown: CancellationToken,
}

impl Daemon {
    fn start() -> Self {
        let shutdown = CancellationToken::new();
        let reaper = ShimReaper::builder()
            .shutdown_stopping_token(shutdown.clone(), Duration::from_secs(10))
            .start();
        // Logs every exit, even of shims whose handles are dropped.
        let mut exits = reaper.exits();
        tokio::spawn(async move {
            while let Some(exit) = exits.next().await {
                println!("shim {} exited: {:?}", exit.pid, exit.shell_code());
            }
        });
        Self { reaper, shutdown }
    }

    async fn boot(&self, script: &str) -> Result<(), Box<dyn Error>> {
        let mut shim = Command::new("sh");
        shim.args(["-c", script]);
        // Drops the handle. The reaper reaps the shim all the same.
        drop(self.reaper.spawn(shim)?);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let daemon = Daemon::start();
    for script in ["exit 0", "exit 3", "kill -SEGV $$", "sleep 0.2; exit 4"] {
        daemon.boot(script).await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;

    daemon.shutdown.cancel();
    let report = daemon.reaper.shutdown().await;
    let stats = daemon.reaper.stats();
    println!(
        "{} reaped, {} still running",
        stats.reaped_total,
        report.still_running.len()
    );
    Ok(())
}
