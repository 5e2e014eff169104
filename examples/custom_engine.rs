//! A program with an engine of its own. The payload of this engine counts down inside the shim. An
//! engine for virtual machines would start one instead.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vmm_runtime::{BoxSpec, PayloadSpec, RuntimeOptions, VmmRuntime, with_causes};
use vmm_shim::{Engine, EngineError, InstanceSpec, Payload, PayloadExit};

struct Countdown;

impl Engine for Countdown {
    fn name(&self) -> &str {
        "countdown"
    }

    fn start(&self, spec: &InstanceSpec, _dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let seconds = spec.payload.options.get("seconds");
        let Some(seconds) = seconds.and_then(|value| value.as_u64()) else {
            return Err(EngineError::Spec("set option `seconds`".to_owned()));
        };
        Ok(Box::new(Counter {
            time: Duration::from_secs(seconds),
            is_stopped: Mutex::new(false),
            stopped: Condvar::new(),
        }))
    }
}

/// A payload without a process: it counts down in [`Payload::wait`].
struct Counter {
    time: Duration,
    is_stopped: Mutex<bool>,
    stopped: Condvar,
}

impl Payload for Counter {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self, _grace: Duration) {
        self.kill();
    }

    fn kill(&self) {
        *self.is_stopped.lock().unwrap() = true;
        self.stopped.notify_all();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        let guard = self.is_stopped.lock().unwrap();
        let runs = |is_stopped: &mut bool| !*is_stopped;
        let (guard, _) = self
            .stopped
            .wait_timeout_while(guard, self.time, runs)
            .unwrap();
        Ok(PayloadExit::Code(if *guard { 1 } else { 0 }))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // This program is its own shim: every box runs in another process of it.
    vmm_shim::Shim::new().engine(Countdown).run_if_shim();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let runtime = VmmRuntime::open(RuntimeOptions::new(home.path())).await?;
    for (name, seconds) in [("short", Some(1)), ("long", Some(1000)), ("broken", None)] {
        let mut payload = PayloadSpec::command::<String>([]);
        payload.engine = "countdown".to_owned();
        payload
            .options
            .extend(seconds.map(|n| ("seconds".to_owned(), n.into())));
        runtime.create(BoxSpec::of(payload).name(name)).await?;
        if let Err(error) = runtime.start(name).await {
            println!("{}\n", with_causes(&error));
        }
    }
    runtime.wait("short").await?;
    runtime.stop("long").await?;

    println!("{:<8} {:<8} CODE", "NAME", "STATUS");
    for bx in runtime.list().await {
        let code = bx.exit_code.map_or("-".to_owned(), |code| code.to_string());
        println!("{:<8} {:<8} {code}", bx.name.unwrap_or_default(), bx.status);
    }
    runtime.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
