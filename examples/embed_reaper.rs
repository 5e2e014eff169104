//! The reaper inside a runtime of somebody else's: shims are spawned and forgotten, and nothing has
//! to wait for them.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use shim_reaper::ShimReaper;
use tokio_util::sync::CancellationToken;

/// Stands for a daemon that has plenty else to do.
struct Daemon {
    reaper: ShimReaper,
    shutdown: CancellationToken,
}

impl Daemon {
    fn start() -> Self {
        let shutdown = CancellationToken::new();
        let reaper = ShimReaper::builder()
            .shutdown_token(shutdown.clone())
            .start();
        // Logs every exit, whoever started the shim and whoever has forgotten it.
        let mut exits = reaper.exits();
        tokio::spawn(async move {
            while let Some(exit) = exits.next().await {
                println!("shim {} ended: {:?}", exit.pid, exit.shell_code());
            }
        });
        Self { reaper, shutdown }
    }

    async fn boot(&self, script: &str) -> Result<(), Box<dyn Error>> {
        let mut shim = Command::new("sh");
        shim.args(["-c", script]);
        // The handle is dropped here: the shim is collected all the same.
        drop(self.reaper.spawn(shim).await?);
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
    println!("{} reaped, {:?}", stats.reaped_total, report);
    Ok(())
}
