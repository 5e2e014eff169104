//! A control plane that drives boxes through the HTTP client of `vmm-rest`, and follows their events.
//!
//! The server runs in the same process, so that the example needs no daemon. For a daemon, use
//! `Client::unix` with the path of its socket.

use std::error::Error;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use vmm_rest::wire::{BoxChange, CreateBoxRequest, StopBoxRequest};
use vmm_rest::{BoxEvents, Client, ImageTable, Limits, Listener, Server};
use vmm_runtime::{RuntimeOptions, VmmRuntime};

fn main() -> Result<(), Box<dyn Error>> {
    // This program is its own shim: every box runs in another process of it.
    vmm_shim::run_if_shim();
    tokio::runtime::Runtime::new()?.block_on(async {
        let home = tempfile::tempdir()?;
        let socket = home.path().join("api.sock");
        let runtime = VmmRuntime::open(RuntimeOptions::new(home.path())).await?;
        let shutdown = CancellationToken::new();
        let server = Server::new(
            &runtime,
            ImageTable::builtin(),
            Limits::default(),
            &shutdown,
        );
        let server = tokio::spawn(server.serve([Listener::unix(&socket).await?]));

        let result = control(&Client::unix(&socket)?).await;

        shutdown.cancel();
        server.await?;
        runtime.shutdown(Duration::from_secs(10)).await;
        result
    })
}

/// Everything in here works the same against a daemon on this or another host.
async fn control(client: &Client) -> Result<(), Box<dyn Error>> {
    println!("{:<8} {:<8} {:<10} CODE", "BOX", "EVENT", "STATUS");
    let events = tokio::spawn(print_events(client.events().await?));

    let web = CreateBoxRequest::of("idle").name("web");
    let job = CreateBoxRequest::of("idle")
        .name("job")
        .cmd(["sh", "-c", "sleep 1; exit 3"]);
    for request in [web, job] {
        let bx = client.create(&request).await?;
        client.start(&bx.box_id).await?;
    }
    while client.inspect("job").await?.pid.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.stop("web", &StopBoxRequest::default()).await?;
    let metrics = client.metrics().await?;
    for bx in client.all_boxes().await? {
        client.remove(&bx.box_id, false).await?;
    }
    events.await?;
    println!(
        "\n{} boxes created, {} failed, {} shims reaped",
        metrics.boxes_created_total, metrics.boxes_failed_total, metrics.shim_reaped
    );
    Ok(())
}

/// Prints events until both boxes are removed.
async fn print_events(mut events: BoxEvents) {
    let mut removed = 0;
    while removed < 2
        && let Some(Ok(event)) = events.next().await
    {
        let bx = event.state;
        println!(
            "{:<8} {:<8} {:<10} {}",
            bx.name.unwrap_or_default(),
            event.change.name(),
            bx.status,
            bx.exit_code.map_or("-".to_owned(), |code| code.to_string()),
        );
        removed += u32::from(event.change == BoxChange::Removed);
    }
}
