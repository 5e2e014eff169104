use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use pidfd_spawn::{Command, Stdio};
use rustix::fs::OFlags;
use vmm_protocol::with_causes;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::error::ShimError;
use crate::state_dir::{Owner, StateDir, Worker};
use crate::{abandoned, encode, oom_score};

/// The environment variable with the ttrpc address of containerd.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

const MAX_INPUT_BYTES: u64 = 10 << 20;

/// Starts the server of a pod, or finds it for a further container of the pod. Returns its address in the form
/// that this containerd expects.
pub(crate) fn start(args: &Args) -> Result<Vec<u8>, ShimError> {
    let params = read_bootstrap_params(args)?;
    let bundle = working_dir().map(Bundle::new)?;
    let spec = bundle.spec()?;
    let address = match bundle.sandbox(&spec) {
        Some(sandbox) => sandbox
            .address()?
            .ok_or_else(|| ShimError::not_found("sandbox", &sandbox.path().to_string_lossy()))?,
        None => start_server(args, &bundle, params.as_ref())?,
    };
    bundle.set_address(&address)?;
    match params {
        // containerd 2.3.
        Some(_) => encode(&BootstrapResult {
            version: 3,
            address,
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }),
        // All versions before take a bare address for version 2 of the Task API.
        None => Ok(address.into_bytes()),
    }
}

fn working_dir() -> Result<std::path::PathBuf, ShimError> {
    env::current_dir().map_err(ShimError::system("find the working directory"))
}

/// Reads what containerd 2.3 writes to stdin. Earlier versions write nothing, or options of the runtime: an
/// `Any`, whose fields are those of another container.
fn read_bootstrap_params(args: &Args) -> Result<Option<BootstrapParams>, ShimError> {
    let mut input = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let read = stdin.lock().take(MAX_INPUT_BYTES).read_to_end(&mut input);
        read.map_err(ShimError::file("read", "/dev/stdin"))?;
    }
    let params = BootstrapParams::parse_from_bytes(&input).ok();
    Ok(params.filter(|params| params.instance_id == args.id && !args.id.is_empty()))
}

/// Starts a server in a session of its own. It inherits the listening socket as its stdin, so containerd can
/// connect at once.
fn start_server(
    args: &Args,
    bundle: &Bundle,
    params: Option<&BootstrapParams>,
) -> Result<String, ShimError> {
    let config = Config::load()?;
    let state = StateDir::create(&config.state_dir, &Owner::of(args, bundle))?;
    let address = state.address();
    let spawn = || -> Result<(), ShimError> {
        let socket = state.socket();
        let listener = UnixListener::bind(&socket).map_err(ShimError::file("bind", &socket))?;
        let program =
            env::current_exe().map_err(ShimError::file("find the program", "/proc/self/exe"))?;
        let mut command = Command::new(program);
        command
            .args(["-namespace", &args.namespace, "-id", &args.id, "-bundle"])
            .arg(bundle.path())
            .arg("serve")
            // The bundle is renamed and removed while the server runs.
            .current_dir("/")
            .setsid(true)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(open_log(bundle).map_or_else(Stdio::null, |log| OwnedFd::from(log).into()));
        // The server inherits it.
        oom_score::raise_above_parent()?;
        if let Some(params) = params {
            command.env(TTRPC_ADDRESS, &params.containerd_ttrpc_address);
        }
        state.spawn(Worker::Server, &mut command)
    };
    spawn().inspect_err(|_| {
        let _ = state.remove();
    })?;
    abandoned::clean_up(&config.state_dir, |error| {
        // Not to stderr, which containerd reads as a part of the address. Without a reader of the log, the error is dropped.
        if let Some(mut log) = open_log(bundle) {
            let _ = writeln!(log, "{}", with_causes(&error));
        }
    });
    Ok(address)
}

/// Opens the FIFO for the log of the server, if containerd reads it.
fn open_log(bundle: &Bundle) -> Option<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let log = options.write(true).custom_flags(flags).open(bundle.log());
    log.ok()
}
