//! Compares HTTP requests with direct calls of the VMM runtime: `cargo bench -p vmm-rest --bench
//! requests`.
//!
//! `wrk(1)` sends requests to the server over loopback; tasks of this process call the VMM runtime with
//! the same concurrency. The two alternate, since the speed of a machine drifts. Server and load share
//! the processors.

#![allow(clippy::expect_used, clippy::panic)]

mod calls;
mod load;
mod wrk;

use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use vmm_rest::{BearerToken, ImageTable, Limits, Listener, Server};
use vmm_runtime::{Removal, RuntimeOptions, VmmRuntime};

use load::{Load, median};
use wrk::Wrk;

/// The number of connections, or of tasks.
const CONCURRENCY: usize = 16;
const TOKEN: &str = "0123456789abcdef";

fn main() {
    vmm_shim::run_if_shim();
    // `cargo test --benches` only checks that the benchmark runs.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (rounds, duration) = if is_bench {
        (9, Duration::from_secs(2))
    } else {
        (1, Duration::from_secs(1))
    };
    let tokio = Runtime::new().expect("a tokio runtime");
    tokio.block_on(run(rounds, duration));
}

async fn run(rounds: usize, duration: Duration) {
    let home = TempDir::new().expect("a home");
    let runtime = VmmRuntime::open(RuntimeOptions::new(home.path()))
        .await
        .expect("a runtime");
    let token = BearerToken::new(TOKEN).expect("a token");
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::tcp(address, Some(token)).await.expect("a port");
    let address = listener.local_addr().expect("an address of its own");
    let shutdown = CancellationToken::new();
    let server = Server::new(
        &runtime,
        ImageTable::builtin(),
        Limits::default(),
        &shutdown,
    );
    let server_task = tokio::spawn(server.serve([listener]));

    let wrk = Wrk::at(&format!("http://{address}"), home.path());
    let (mut reading, mut creating) = (Measurements::default(), Measurements::default());
    for _ in 0..rounds {
        let called = calls::metrics(&runtime, duration).await;
        reading.add(wrk.get("/v1/metrics", duration).await, called);
        let called = calls::create(&runtime, duration).await;
        remove_all(&runtime).await;
        creating.add(wrk.post("/v1/boxes", "{}", duration).await, called);
        remove_all(&runtime).await;
    }
    println!("| | over HTTP | called | ratio |\n|---|---|---|---|");
    reading.print("GET /v1/metrics");
    creating.print("POST /v1/boxes");
    shutdown.cancel();
    server_task.await.expect("the end of the server");
    runtime.shutdown(Duration::from_secs(10)).await;
}

async fn remove_all(runtime: &VmmRuntime) {
    let boxes = runtime.list().await;
    for chunk in boxes.chunks(CONCURRENCY) {
        join_all(
            chunk
                .iter()
                .map(|info| runtime.remove(&info.id, Removal::Force)),
        )
        .await;
    }
}

/// Pairs of loads, over HTTP and called; reported as medians.
#[derive(Default)]
struct Measurements(Vec<(Load, Load)>);

impl Measurements {
    fn add(&mut self, over_http: Load, called: Load) {
        self.0.push((over_http, called));
    }

    fn print(&self, name: &str) {
        self.row(&format!("{name}, a second"), 0, |load| load.per_second);
        self.row(&format!("{name}, p99 in ms"), 3, |load| {
            load.p99.as_secs_f64() * 1e3
        });
    }

    fn row(&self, name: &str, digits: usize, of: impl Fn(&Load) -> f64) {
        let over_http = median(self.0.iter().map(|(http, _)| of(http)));
        let called = median(self.0.iter().map(|(_, called)| of(called)));
        let ratio = median(self.0.iter().map(|(http, called)| of(http) / of(called)));
        println!("| {name} | {over_http:.digits$} | {called:.digits$} | {ratio:.2e} |");
    }
}
