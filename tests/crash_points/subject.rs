//! The process under test. It prepares a home without faults, marks the operation for the supervisor,
//! and prints a report if it survives.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};
use serde_json::{Value, json};
use vmm_runtime::{
    BoxInfo, BoxSpec, BoxStatus, Removal, RestartPolicy, RuntimeError, RuntimeOptions, VmmRuntime,
    with_causes,
};

use crate::calls::{BEGIN, END};
use crate::common::boxes::{script, sleeping};
use crate::common::{DEADLINE, kill, pause};
use crate::point::{Operation, Series};
use crate::supervisor::await_supervisor;

/// The box that the operation is about.
pub const BOX: &str = "subject";
/// A box that is only created, and whose label must survive.
pub const IDLE: &str = "idle";
/// A box of a recovery whose end was acknowledged.
pub const ENDED: &str = "ended";
/// A detached box of a recovery that keeps running.
pub const DETACHED: &str = "detached";
/// A detached box of a recovery whose shim is killed while no runtime is attached.
pub const ORPHANED: &str = "orphaned";

pub const LABEL: (&str, &str) = ("key", "value");

/// The exit code of a payload that exits by itself.
pub const CODE: i32 = 7;

/// The file in the directory of the box that makes its payload exit, also if it is restarted.
pub const GO: &str = "go";

/// How long a stopped payload may take.
const GRACE: Duration = Duration::from_secs(60);

fn spec(name: &str) -> BoxSpec {
    let spec = match name {
        ENDED => script(&format!("exit {CODE}")),
        _ => sleeping(),
    };
    prepared(spec, name)
}

/// Returns the spec of the box that the operation is about.
fn subject(series: Series) -> BoxSpec {
    let waits = format!("while [ ! -e $VMM_BOX_DIR/{GO} ]; do sleep 0.01; done; exit {CODE}");
    let spec = match series.operation {
        Operation::Exit => script(&waits),
        Operation::Restart => script(&waits).restart(RestartPolicy::OnFailure { max: Some(1) }),
        Operation::AutoRemove => script(&waits).auto_remove(true),
        _ => sleeping(),
    };
    prepared(spec, BOX).detached(series.detached)
}

fn prepared(spec: BoxSpec, name: &str) -> BoxSpec {
    spec.name(name).label(LABEL.0, LABEL.1).stop_grace(GRACE)
}

/// Prepares the home of a recovery, and dies.
pub fn leave_boxes(options: RuntimeOptions) -> ! {
    block_on(async {
        let runtime = VmmRuntime::open(options).await.unwrap();
        for name in [IDLE, ENDED, BOX, DETACHED, ORPHANED] {
            let detached = name == DETACHED || name == ORPHANED;
            runtime.create(spec(name).detached(detached)).await.unwrap();
            if name != IDLE {
                runtime.start(name).await.unwrap();
            }
        }
        let ended = runtime.wait(ENDED).await.unwrap();
        assert_eq!(ended.exit_code, Some(CODE));
        let orphaned = runtime.info(ORPHANED).await.unwrap();
        let boxes = orphaned.dir.parent().unwrap().to_owned();
        for prefix in [".creating-", ".removing-"] {
            let remnant = boxes.join(format!("{prefix}01J00000000000000000000000"));
            fs::create_dir_all(remnant.join("directory")).unwrap();
            fs::write(remnant.join("file"), "").unwrap();
        }
        // Prints the shim that the parent kills, when no runtime is there to see it.
        println!("{}", orphaned.pid.unwrap());
        kill(std::process::id(), Signal::SIGKILL);
        unreachable!()
    })
}

/// Performs the operation under supervision.
pub fn run(options: RuntimeOptions, series: Series) {
    await_supervisor().unwrap();
    block_on(async {
        let report = if series.operation == Operation::Recover {
            recover(options).await
        } else {
            operate(options, series).await
        };
        println!("{report}");
    });
}

async fn recover(options: RuntimeOptions) -> Value {
    let open = async || VmmRuntime::open(options.clone()).await.map(drop);
    let errors = attempt(open).await;
    report(errors, None)
}

async fn operate(options: RuntimeOptions, series: Series) -> Value {
    let is_warm = series.operation == Operation::WarmStart;
    let options = options.warm_shims(usize::from(is_warm));
    let runtime = VmmRuntime::open(options).await.unwrap();
    runtime.create(spec(IDLE)).await.unwrap();
    let spec = subject(series);
    let mut dir = PathBuf::new();
    if series.operation != Operation::Create {
        dir = runtime.create(spec.clone()).await.unwrap().dir;
        if !matches!(series.operation, Operation::Start | Operation::WarmStart) {
            runtime.start(BOX).await.unwrap();
        }
    }
    let errors = match series.operation {
        Operation::Create => attempt(async || runtime.create(spec.clone()).await.map(drop)).await,
        Operation::Start | Operation::WarmStart => {
            attempt(async || runtime.start(BOX).await.map(drop)).await
        }
        Operation::Stop => attempt(async || runtime.stop(BOX).await.map(drop)).await,
        Operation::Remove => attempt(async || remove(&runtime).await).await,
        Operation::Exit => attempt(async || exit(&runtime, &dir).await).await,
        Operation::Restart => {
            let has_ended = |info: &BoxInfo| {
                info.status == BoxStatus::Failed && info.restarts > 0 && !info.restarting
            };
            attempt(async || exit_until(&runtime, &dir, has_ended).await).await
        }
        Operation::AutoRemove => {
            attempt(async || exit_until(&runtime, &dir, |_| false).await).await
        }
        Operation::Shutdown => {
            attempt(async || {
                runtime.shutdown(DEADLINE).await;
                Ok(())
            })
            .await
        }
        Operation::Recover => unreachable!(),
    };
    let info = runtime.info(BOX).await.ok();
    runtime.shutdown(DEADLINE).await;
    report(errors, info)
}

async fn remove(runtime: &VmmRuntime) -> Result<(), RuntimeError> {
    match runtime.remove(BOX, Removal::Force).await {
        // A removal that failed may have removed the box.
        Err(RuntimeError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

async fn exit(runtime: &VmmRuntime, dir: &Path) -> Result<(), RuntimeError> {
    send_go(dir);
    runtime.wait(BOX).await.map(drop)
}

/// Makes the payload exit, and waits until `is_over` holds or the box was removed.
async fn exit_until(
    runtime: &VmmRuntime,
    dir: &Path,
    is_over: impl Fn(&BoxInfo) -> bool,
) -> Result<(), RuntimeError> {
    send_go(dir);
    loop {
        match runtime.info(BOX).await {
            Ok(info) if is_over(&info) => return Ok(()),
            Ok(_) => pause().await,
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn send_go(dir: &Path) {
    // The first attempt may fail because of the fault.
    while fs::write(dir.join(GO), "").is_err() {}
}

/// The errors of the marked operation, and of a second attempt.
type Errors = [Option<RuntimeError>; 2];

/// Marks the operation. Tries again if it fails, because each fault happens once.
async fn attempt(operation: impl AsyncFn() -> Result<(), RuntimeError>) -> Errors {
    mark(BEGIN);
    let first = within_deadline(operation()).await.err();
    mark(END);
    let second = match first {
        Some(_) => within_deadline(operation()).await.err(),
        None => None,
    };
    [first, second]
}

async fn within_deadline<T>(operation: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(DEADLINE, operation).await;
    outcome.expect("the operation hangs")
}

fn report(errors: Errors, info: Option<BoxInfo>) -> Value {
    let [first, second] = errors.map(|error| {
        error.map(|error| match &error {
            RuntimeError::Panicked { .. } | RuntimeError::Closed => panic!("{error:?}"),
            _ => with_causes(&error),
        })
    });
    json!({"error": first, "second": second, "status": info.map(|info| crate::oracle::describe(&info))})
}

/// Marks the begin or the end of the operation. The call fails: no process has this pid.
fn mark(what: i32) {
    getsid(Some(Pid::from_raw(what))).unwrap_err();
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(future)
}
