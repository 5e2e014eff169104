use std::env;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Level;
use vmm_rest::{BearerToken, Image, ImageTable, Limits, Listener, Server};
use vmm_runtime::{
    ConfinementRule, ControlGroup, HostPolicy, RuntimeOptions, RuntimeShutdown, ShimProgram,
    VmmRuntime, with_causes,
};

use super::log_format::LogFormat;
use super::service_manager::{self, InheritedSockets, Watchdog};
use super::shim_program;
use super::signals::handle_signals;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::print_error;
use crate::server_args::{TOKEN_VARIABLE, read_token};
use crate::signals::StopSignals;

/// Run the daemon, in the foreground
///
/// The daemon listens at the socket shimd.sock in --home, which only its own user can open.
/// SIGTERM, SIGINT or SIGHUP shuts it down: it finishes the pending requests, and stops all boxes
/// that were created without --outlive. A second SIGTERM or SIGINT ends it immediately.
///
/// RUST_LOG sets the log level, for example RUST_LOG=debug.
#[derive(Args, Debug)]
#[command(after_long_help = IMAGES_HELP)]
pub(crate) struct Serve {
    /// Also listen on TCP, for clients with the token; can be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    listen: Vec<SocketAddr>,
    /// Read the token of TCP clients from this file [default: the variable SHIMD_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Directory of image files; NAME.json is the image NAME
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Space in MiB that must be free on the disk of --home, with 64 inodes for each MiB, to start the
    /// daemon, or to create or start a box
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    disk_reserve: u32,
    /// Users of the guests: the VMM of each box has one of its own. The default is
    /// 1879048192-1879113727, if the daemon is root
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_range)]
    box_uids: Option<RangeInclusive<u32>>,
    /// Do not apply this rule, which keeps the VMMs of guests from the host; can be repeated.
    /// `inspect` shows the rules that are not applied to a box
    #[arg(long, value_name = "RULE", value_enum)]
    disable_confinement: Vec<Rule>,
    /// Let specs of boxes add arguments to the command line of QEMU, which can give a guest the files
    /// that QEMU may open
    #[arg(long)]
    allow_qemu_arguments: bool,
    /// Let specs of boxes connect guests to network namespaces of the host, which must not be that of the
    /// daemon. A guest receives what arrives there, and can send any frame
    #[arg(long)]
    allow_network: bool,
    /// Format of the log, which goes to stderr
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// The confinement rules that the operator can disable.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rule {
    /// A filter of system calls
    Seccomp,
    /// Rules for files, TCP, signals and abstract sockets
    Landlock,
    /// A network namespace without interfaces
    NetworkNamespace,
    /// A user of its own for each box
    User,
}

impl From<Rule> for ConfinementRule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Seccomp => Self::Seccomp,
            Rule::Landlock => Self::Landlock,
            Rule::NetworkNamespace => Self::NetworkNamespace,
            Rule::User => Self::User,
        }
    }
}

const IMAGES_HELP: &str = r#"Images:
  `shimd image build` makes an image of a guest, which a daemon that runs uses at once.

  `shimd run greeter` creates a box from the file greeter.json in the directory of --images:

  {
    "command": ["sh", "-c", "echo $WORD"],
    "env": {"WORD": "hello"},
    "working_dir": "/tmp",
    "health": {"probe": {"command": {"command": ["test", "-d", "/tmp"]}}, "interval": 5000},
    "cpus": 1,
    "memory_mib": 256,
    "pids": 64,
    "console": {"max_bytes": 10485760, "files": 3}
  }

  Every field is optional. `pids` limits the processes and threads of a box; the default is 4096,
  or no limit if the daemon cannot create control groups. Further fields: `entrypoint`, the words
  before the command; `ready`, "started" (the default), or "notified" for a payload that reports
  READY=1 as in sd_notify(3); `name`, in place of the file name; and `engine`, by default "process",
  with its `options`. The engine "qemu" runs a guest, and, if the option `agent` says that the
  guest has the agent, the command in it:

  {"engine": "qemu", "options": {"kernel": "/boot/vmlinuz", "initrd": "/srv/initrd"}, "memory_mib": 512}"#;

/// How long boxes may take to stop when the daemon shuts down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The threads that read consoles and write the journal of idempotency keys. None of them waits for
/// a client.
const BLOCKING_THREADS: usize = 8;

/// One is used while the next one starts.
const WARM_SHIMS: usize = 2;

impl Serve {
    pub(crate) fn run(self, home: Home) -> Result<ExitCode, Failure> {
        self.log_format.init()?;
        // From here on failures are logged, not returned to be printed.
        match self.run_logged(&home) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(failure) if tracing::enabled!(Level::ERROR) => {
                tracing::error!("{}", failure.with_causes());
            }
            Err(failure) => print_error(failure.with_causes()),
        }
        Ok(ExitCode::FAILURE)
    }

    fn run_logged(self, home: &Home) -> Result<(), Failure> {
        // Before the tokio runtime starts its threads.
        let inherited = InheritedSockets::take()?;
        raise_descriptor_limit();
        let shim = shim_program::find();
        let images = self.images(home, shim.as_ref().map(ShimProgram::path))?;
        let token = read_token(self.token_file.as_deref())?;
        tokio::runtime::Builder::new_multi_thread()
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build()
            .map_err(Failure::system("start the tokio runtime"))?
            .block_on(self.serve(home, shim, inherited, images, token))
    }

    /// Returns the images. The image `idle` runs the program `shim`, or else this program.
    fn images(&self, home: &Home, shim: Option<&Path>) -> Result<ImageTable, Failure> {
        let program = match shim {
            Some(shim) => shim.to_owned(),
            None => env::current_exe().map_err(Failure::system("find the program of shimd"))?,
        };
        let idle = Image::command([program.to_string_lossy().as_ref(), "idle"]);
        let table = ImageTable::with_idle(idle).with_store(home.images());
        Ok(match &self.images {
            Some(dir) => table.with_folder(dir)?,
            None => table,
        })
    }

    async fn serve(
        self,
        home: &Home,
        shim: Option<ShimProgram>,
        inherited: InheritedSockets,
        images: ImageTable,
        token: Option<BearerToken>,
    ) -> Result<(), Failure> {
        let shutdown = CancellationToken::new();
        let signals = StopSignals::catch().map_err(Failure::system("catch signals"))?;
        tokio::spawn(handle_signals(signals, shutdown.clone()));

        let needs_socket = !inherited.has_unix();
        // A listener that fails must do so before the runtime recovers any box.
        let mut listeners = self.listeners(inherited, token).await?;
        let private = service_manager::PRIVATE_VARIABLES
            .into_iter()
            .chain([TOKEN_VARIABLE]);
        let policy = self.policy();
        let mut options = RuntimeOptions::new(home.path())
            .policy(policy.clone())
            .private_env(private)
            .disk_reserve(u64::from(self.disk_reserve) << 20)
            .warm_shims(WARM_SHIMS)
            .payload_check({
                let shim = shim_program::shim();
                move |payload| shim.validate(payload, &policy)
            })
            .payload_cleanup({
                let shim = shim_program::shim();
                move |payload, dir| shim.cleanup(payload, dir)
            });
        options.shim_program = shim;
        options.box_uids = self.box_uids.clone();
        let runtime = VmmRuntime::open(options).await?;
        let groups = block_in_place(ControlGroup::check);
        if let Err(error) = &groups {
            tracing::warn!(
                error = %with_causes(error),
                "no control groups: limits of CPU and memory are enforced less strictly, boxes \
                 without such limits are unlimited, and the number of processes is not limited"
            );
        }
        // After the runtime has locked the home: a socket that is still there is stale.
        if needs_socket {
            let socket = home.socket();
            listeners.push(Listener::unix(&socket).await?);
            tracing::info!(socket = %socket.display(), "listening");
        }
        let limits = Limits::default().apply_default_limits(groups.is_ok());
        let server = Server::new(&runtime, images, limits, &shutdown)
            .keep_idempotency_keys(&home.path().join("idempotency-keys"))
            .map_err(Failure::system("open the file idempotency-keys in --home"))?;
        let _watchdog = sd_notify::watchdog_enabled().map(|timeout| {
            let watchdog = Watchdog::default().run(runtime.clone(), timeout);
            AbortOnDropHandle::new(tokio::spawn(watchdog))
        });
        if !shutdown.is_cancelled() {
            service_manager::notify_ready();
            tracing::info!(home = %home.path().display(), "ready");
        }
        let notify_stopping = async {
            shutdown.cancelled().await;
            service_manager::notify_stopping();
        };
        tokio::join!(server.serve(listeners), notify_stopping);
        log_shutdown(&runtime.shutdown(SHUTDOWN_TIMEOUT).await);
        Ok(())
    }

    /// Returns what the options permit, and logs which rules they disable.
    fn policy(&self) -> HostPolicy {
        let rules = self.disable_confinement.iter().copied();
        let policy = rules.map(ConfinementRule::from).fold(
            HostPolicy::default()
                .allow_arguments(self.allow_qemu_arguments)
                .allow_network(self.allow_network),
            HostPolicy::disable,
        );
        for rule in &policy.disabled_rules {
            tracing::warn!(%rule, "the rule is not applied to the VMMs of guests");
        }
        policy
    }

    /// Returns the listeners on inherited sockets and on TCP.
    async fn listeners(
        &self,
        inherited: InheritedSockets,
        token: Option<BearerToken>,
    ) -> Result<Vec<Listener>, Failure> {
        let mut listeners = Vec::new();
        for listener in inherited.into_listeners(token.as_ref()) {
            listeners.push(listener?);
            tracing::info!("listening on a socket of the service manager");
        }
        for address in &self.listen {
            let listener = Listener::tcp(*address, token.clone()).await?;
            let address = listener.local_addr().unwrap_or(*address);
            tracing::info!(%address, "listening");
            if token.is_none() {
                tracing::warn!(%address, "no token: only /healthz and /v1/config are served");
            }
            listeners.push(listener);
        }
        Ok(listeners)
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "must be an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080".to_owned()
    })
}

fn parse_range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let parse = || {
        let (first, last) = text.split_once('-')?;
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    parse().ok_or_else(|| "must be two numbers of users, as in 200000-265535".to_owned())
}

/// Raises the soft limit of open descriptors to the hard limit, because every shim and every
/// connection needs some. Shims inherit the limit; their payloads do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open descriptors");
    }
}

fn log_shutdown(report: &RuntimeShutdown) {
    let RuntimeShutdown {
        stopped,
        left_running,
        stuck,
        ..
    } = report;
    tracing::info!(?stopped, ?left_running, "shut down");
    if !stuck.is_empty() {
        tracing::error!(?stuck, "the shims of these boxes survived SIGKILL");
    }
}
