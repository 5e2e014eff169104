//! The containerd runtime `io.containerd.vmm.v1`: runs each pod in a virtual machine.
//!
//! containerd starts the program `containerd-shim-vmm-v1` for each pod. The program serves the containerd Task
//! API, and runs one guest as a box of `vmm-runtime`. All containers of the pod run in that guest.
//!
//! ```text
//! containerd ── ttrpc ──► containerd-shim-vmm-v1 ── vmm-runtime ──► vmm-shim ──► QEMU
//!     ▲                      │            ▲                            │
//!     └────── events ◄───────┘            └──── control frames ────────┴──► vmm-agent ──► containers
//! ```
//!
//! Use the program through containerd: `ctr run --runtime io.containerd.vmm.v1`, or a Kubernetes
//! RuntimeClass. The [README](https://docs.rs/crate/containerd-shim-vmm) describes the installation. Use
//! `vmm-runtime` to run guests without containerd.
//!
//! # Reaping
//!
//! The program waits for its children only through `shim-reaper`, by pidfd. It has no handler for SIGCHLD, and
//! never waits for any child.

#[cfg(not(target_os = "linux"))]
compile_error!("containerd-shim-vmm needs Linux");

mod abandoned;
mod args;
mod bundle;
mod config;
mod container;
mod delete;
mod error;
mod events;
mod guest;
mod idle;
mod leftover_events;
mod lifecycle;
mod logger;
mod loop_device;
mod oci;
mod oom_score;
mod peer;
mod pod;
mod pod_share;
mod port_forward;
mod process;
mod recorded_process;
mod reserved_ids;
mod resources;
mod rootfs;
mod serve;
mod service;
mod signal;
mod start;
mod state_dir;
mod stats;
mod stdio;
mod sys;
#[cfg(test)]
mod test_mounts;
mod unmount;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use vmm_protocol::with_causes;

use args::{Action, Args};
use error::ShimError;

/// The name of the runtime.
const RUNTIME: &str = "io.containerd.vmm.v1";

/// Runs the program with the arguments of this process. Call `vmm_shim::Shim::run_if_shim` before: the program
/// is its own shim program.
pub fn run() -> ExitCode {
    let result = Args::parse(std::env::args().skip(1)).and_then(|args| run_action(&args));
    match result {
        Ok(output) => match io::stdout().write_all(&output) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            log(format_args!(
                "containerd-shim-vmm-v1: {}",
                with_causes(&error)
            ));
            ExitCode::FAILURE
        }
    }
}

/// Carries out an action. Returns what it prints.
fn run_action(args: &Args) -> Result<Vec<u8>, ShimError> {
    match args.action {
        Action::Version => Ok(format!("{RUNTIME} {}\n", vmm_shim::VERSION).into_bytes()),
        Action::Info => encode(&info()),
        Action::Start => start::start(args),
        Action::Delete => encode(&delete::delete(args)?),
        Action::Serve => serve::serve(args).map(|()| Vec::new()),
        Action::Forward => leftover_events::forward(args).map(|()| Vec::new()),
        Action::Finish => delete::finish(args).map(|()| Vec::new()),
    }
}

fn info() -> RuntimeInfo {
    let mut version = RuntimeVersion::new();
    version.version = vmm_shim::VERSION.to_owned();
    let mut info = RuntimeInfo::new();
    info.name = RUNTIME.to_owned();
    info.version = Some(version).into();
    info
}

/// Writes a line to the log, which containerd reads.
fn log(line: impl Display) {
    // Without a reader, there is no log.
    let _ = writeln!(io::stderr(), "{line}");
}

/// How long a thread for what can take long waits for the next task. Its stack is free then.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Returns a tokio runtime of this thread.
fn tokio_runtime() -> Result<tokio::runtime::Runtime, ShimError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .map_err(ShimError::system("start a tokio runtime"))
}

fn encode(message: &impl Message) -> Result<Vec<u8>, ShimError> {
    message.write_to_bytes().map_err(ShimError::Encode)
}
