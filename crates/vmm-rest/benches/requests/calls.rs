//! The load without HTTP.

use std::time::{Duration, Instant};

use futures::future::join_all;
use vmm_runtime::{BoxSpec, VmmRuntime};

use crate::AT_ONCE;
use crate::load::Load;

pub(crate) async fn metrics(runtime: &VmmRuntime, span: Duration) -> Load {
    measure(runtime, span, |runtime| async move {
        runtime.metrics().await;
    })
    .await
}

pub(crate) async fn create(runtime: &VmmRuntime, span: Duration) -> Load {
    measure(runtime, span, |runtime| async move {
        let spec = BoxSpec::new(["sleep", "infinity"]).cpus(1).memory_mib(512);
        runtime.create(spec).await.expect("a box");
    })
    .await
}

/// Each task calls again as soon as it has been answered.
async fn measure<F, Called>(runtime: &VmmRuntime, span: Duration, call: F) -> Load
where
    F: Fn(VmmRuntime) -> Called + Copy + Send + Sync + 'static,
    Called: Future<Output = ()> + Send,
{
    let begun = Instant::now();
    let tasks = (0..AT_ONCE).map(|_| {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < span {
                let asked = Instant::now();
                call(runtime.clone()).await;
                took.push(asked.elapsed());
                tokio::task::consume_budget().await;
            }
            took
        })
    });
    let mut took = Vec::new();
    for task in join_all(tasks).await {
        took.extend(task.expect("a task that does not panic"));
    }
    let elapsed = begun.elapsed();
    took.sort_unstable();
    Load {
        per_second: took.len() as f64 / elapsed.as_secs_f64(),
        p99: took[took.len() * 99 / 100],
    }
}
