//! What a request costs over the call that it makes: `cargo bench -p vmm-rest --bench requests`.
//!
//! `wrk(1)` drives the server over loopback, tasks of this process drive the runtime, the same
//! number at once and in turns, since machines drift. Server and load share the processors.

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
use vmm_runtime::{RuntimeOptions, VmmRuntime};

use load::{Load, median};
use wrk::Wrk;

/// Connections, or tasks.
const AT_ONCE: usize = 16;
const TOKEN: &str = "0123456789abcdef";

fn main() {
    vmm_shim::run_if_shim();
    // `cargo test --benches` only wants to see that it runs.
    let (rounds, span) = match std::env::args().any(|arg| arg == "--bench") {
        true => (9, Duration::from_secs(2)),
        false => (1, Duration::from_secs(1)),
    };
    let tokio = Runtime::new().expect("a tokio runtime");
    tokio.block_on(run(rounds, span));
}

async fn run(rounds: usize, span: Duration) {
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
    let served = tokio::spawn(server.serve([listener]));

    let wrk = Wrk::at(&format!("http://{address}"), home.path());
    let (mut reading, mut creating) = (Pairs::default(), Pairs::default());
    for _ in 0..rounds {
        let called = calls::metrics(&runtime, span).await;
        reading.add(wrk.get("/v1/metrics", span).await, called);
        let called = calls::create(&runtime, span).await;
        clear(&runtime).await;
        creating.add(wrk.post("/v1/boxes", "{}", span).await, called);
        clear(&runtime).await;
    }
    println!("| | over HTTP | called | ratio |\n|---|---|---|---|");
    reading.print("GET /v1/metrics");
    creating.print("POST /v1/boxes");
    shutdown.cancel();
    served.await.expect("the end of the server");
    runtime.shutdown(Duration::from_secs(10)).await;
}

async fn clear(runtime: &VmmRuntime) {
    let boxes = runtime.list().await;
    for some in boxes.chunks(AT_ONCE) {
        join_all(some.iter().map(|info| runtime.remove(&info.id, true))).await;
    }
}

/// Pairs of measurements, of which the medians count.
#[derive(Default)]
struct Pairs(Vec<(Load, Load)>);

impl Pairs {
    fn add(&mut self, over_http: Load, called: Load) {
        self.0.push((over_http, called));
    }

    fn print(&self, what: &str) {
        self.row(&format!("{what}, a second"), 0, |load| load.per_second);
        self.row(&format!("{what}, p99 in ms"), 3, |load| {
            load.p99.as_secs_f64() * 1e3
        });
    }

    fn row(&self, what: &str, digits: usize, of: impl Fn(&Load) -> f64) {
        let over_http = median(self.0.iter().map(|(http, _)| of(http)));
        let called = median(self.0.iter().map(|(_, called)| of(called)));
        let ratio = median(self.0.iter().map(|(http, called)| of(http) / of(called)));
        println!("| {what} | {over_http:.digits$} | {called:.digits$} | {ratio:.2e} |");
    }
}
