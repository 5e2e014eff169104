//! The load of direct calls, without HTTP.

use std::time::{Duration, Instant};

use futures::future::join_all;
use vmm_runtime::{BoxSpec, VmmRuntime};

use crate::CONCURRENCY;
use crate::load::Load;

pub(crate) async fn metrics(runtime: &VmmRuntime, duration: Duration) -> Load {
    measure(runtime, duration, |runtime| async move {
        runtime.metrics().await;
    })
    .await
}

pub(crate) async fn create(runtime: &VmmRuntime, duration: Duration) -> Load {
    measure(runtime, duration, |runtime| async move {
        let spec = BoxSpec::new(["sleep", "infinity"]).cpus(1).memory_mib(512);
        runtime.create(spec).await.expect("a box");
    })
    .await
}

/// Calls for as long as `duration`, in concurrent tasks that each call again when a call returns.
async fn measure<F, Fut>(runtime: &VmmRuntime, duration: Duration, call: F) -> Load
where
    F: Fn(VmmRuntime) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let start = Instant::now();
    let tasks = (0..CONCURRENCY).map(|_| {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < duration {
                let call_start = Instant::now();
                call(runtime.clone()).await;
                latencies.push(call_start.elapsed());
                tokio::task::consume_budget().await;
            }
            latencies
        })
    });
    let mut latencies = Vec::new();
    for task in join_all(tasks).await {
        latencies.extend(task.expect("a task that does not panic"));
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    Load {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        p99: latencies[latencies.len() * 99 / 100],
    }
}
