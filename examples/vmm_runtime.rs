//! A VMM runtime and its boxes: one box is killed, one is removed, one crashes, and one outlives its
//! VMM runtime. After each step the program prints what the VMM runtime knows.
//!
//! The boxes run commands instead of virtual machines, so that nothing else has to be installed.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm_runtime::{BoxSpec, BoxStatus, Removal, RuntimeOptions, VmmRuntime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The status and exit code that each box must have at the end.
const EXPECTED: [(&str, BoxStatus, Option<i32>); 4] = [
    ("web", BoxStatus::Stopped, Some(143)),
    ("victim", BoxStatus::Failed, Some(137)),
    ("crasher", BoxStatus::Failed, Some(3)),
    ("survivor", BoxStatus::Failed, Some(7)),
];

fn main() -> Result<ExitCode> {
    // This program is its own shim: every box runs in another process of it.
    vmm_shim::run_if_shim();
    tokio::runtime::Runtime::new()?.block_on(async {
        let home = tempfile::Builder::new().prefix("vmm-").tempdir()?;
        println!("a VMM runtime, with its boxes in {}", home.path().display());
        let result = tokio::select! {
            result = run(home.path()) => result.map(|()| ExitCode::SUCCESS),
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)), // 128 + SIGINT
        };
        // After Ctrl-C or an error, boxes may still run.
        let runtime = VmmRuntime::open(RuntimeOptions::new(home.path())).await?;
        for bx in runtime.list().await {
            runtime.remove(&bx.id, Removal::Force).await?;
        }
        runtime.shutdown(TIMEOUT).await;
        result
    })
}

async fn run(home: &Path) -> Result<()> {
    let runtime = VmmRuntime::open(RuntimeOptions::new(home)).await?;
    let wait_for_go = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.05; done; exit 7";
    for spec in [
        BoxSpec::new(["sleep", "1000"]).name("web"),
        BoxSpec::new(["sleep", "1000"]).name("victim"),
        BoxSpec::new(["sleep", "1000"]).name("nap"),
        BoxSpec::new(["sh", "-c", "sleep 1; exit 3"]).name("crasher"),
        BoxSpec::new(["sh", "-c", wait_for_go])
            .name("survivor")
            .detached(true),
    ] {
        let bx = runtime.create(spec).await?;
        runtime.start(&bx.id).await?;
    }
    show("five boxes run, each in a shim of its own", &runtime).await;

    let pid = runtime
        .info("victim")
        .await?
        .pid
        .ok_or("victim does not run")?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
    runtime.wait("victim").await?;
    show("kill -9 to the shim of victim", &runtime).await;

    runtime.remove("nap", Removal::Force).await?;
    show("nap is removed by force", &runtime).await;

    runtime.wait("crasher").await?;
    show("crasher has exited with an error", &runtime).await;

    runtime.shutdown(TIMEOUT).await;
    show(
        "the VMM runtime is shut down: web is stopped, survivor runs on",
        &runtime,
    )
    .await;

    let runtime = VmmRuntime::open(RuntimeOptions::new(home)).await?;
    show("a new VMM runtime has found survivor", &runtime).await;

    let survivor = runtime.info("survivor").await?;
    fs::write(home.join("boxes").join(&survivor.id).join("go"), "")?;
    runtime.wait("survivor").await?;
    runtime.shutdown(TIMEOUT).await;
    check(&runtime).await?;
    show(
        "survivor has exited, and the new VMM runtime knows its exit code",
        &runtime,
    )
    .await;
    Ok(())
}

/// Prints a step, the boxes after it, and the totals.
async fn show(step: &str, runtime: &VmmRuntime) {
    println!("\n* {step}");
    println!(
        "  {:<9} {:<8} {:>8} {:>5}  ERROR",
        "NAME", "STATUS", "SHIM", "CODE"
    );
    for bx in runtime.list().await {
        println!(
            "  {:<9} {:<8} {:>8} {:>5}  {}",
            bx.name.unwrap_or_default(),
            bx.status,
            bx.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            bx.exit_code.map_or("-".to_owned(), |code| code.to_string()),
            bx.error.unwrap_or_default(),
        );
    }
    let metrics = runtime.metrics().await;
    let zombies = runtime.count_zombies().await;
    println!(
        "  running {}, failed {}; shims registered {}, reaped {}; zombies {}",
        metrics.num_running_boxes,
        metrics.boxes_failed_total,
        metrics.shim_reaper_registered,
        metrics.shim_reaped,
        zombies.map_or("unknown".to_owned(), |count| count.to_string()),
    );
}

/// Checks the final state of all boxes, and that no zombie is left.
async fn check(runtime: &VmmRuntime) -> Result<()> {
    for (name, status, code) in EXPECTED {
        let bx = runtime.info(name).await?;
        if (bx.status, bx.exit_code) != (status, code) {
            return Err(format!("{name} is {} with {:?}", bx.status, bx.exit_code).into());
        }
    }
    // The reaper leaves a zombie to its owner for a grace period.
    let deadline = Instant::now() + TIMEOUT;
    while runtime.count_zombies().await.is_some_and(|count| count > 0) {
        if Instant::now() >= deadline {
            return Err("a zombie is left".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
