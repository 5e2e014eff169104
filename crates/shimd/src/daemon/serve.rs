use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Level;
use vmm_rest::{BearerToken, Image, ImageTable, Limits, Listener, Server};
use vmm_runtime::{ControlGroup, RuntimeOptions, RuntimeShutdown, VmmRuntime};

use super::signals::Signals;
use super::watchdog::Watchdog;
use super::{Inherited, LogFormat, descriptors, service_manager};
use crate::cli::complain;
use crate::failure::Failure;
use crate::home::Home;
use crate::server::{TOKEN_VARIABLE, token};

/// Run the daemon, in the foreground
///
/// It listens at the socket shimd.sock in --home, which only its own user can open. SIGTERM,
/// SIGINT and the end of its terminal shut it down: requests are finished, and boxes are stopped
/// unless they were made with --outlive. A second signal ends it at once.
///
/// RUST_LOG says how much it logs, for example `debug`.
#[derive(Args, Debug)]
#[command(after_long_help = IMAGES)]
pub(crate) struct Serve {
    /// Listen on TCP as well, for those who have the token; can be given several times
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    listen: Vec<SocketAddr>,
    /// The token that lets clients in over TCP, which may also be in SHIMD_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A folder of files NAME.json, each an image that boxes can be made from
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// How to log, to stderr
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

const IMAGES: &str = r#"Images:
  A file greeter.json in the folder that --images names, from which `shimd run greeter` makes a box:

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

  Every field can be left out. `pids` is how many processes and threads a box may have at a time,
  4096 unless said otherwise, where the daemon can make control groups. There are also `entrypoint`, what comes before the command; `ready`,
  "started" or "notified", for a payload that says READY=1 as sd_notify(3) does; `name`, in place of
  the file's; and `engine` with its `options`, "process" unless said otherwise."#;

/// How long boxes may take to stop when the daemon ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

impl Serve {
    pub(crate) fn run(self, home: Home) -> Result<ExitCode, Failure> {
        self.log_format.start()?;
        // From now on whatever is told is logged.
        match self.run_logged(&home) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(failure) if tracing::enabled!(Level::ERROR) => tracing::error!("{failure}"),
            Err(failure) => complain(failure),
        }
        Ok(ExitCode::FAILURE)
    }

    fn run_logged(self, home: &Home) -> Result<(), Failure> {
        // While there is one thread.
        let inherited = Inherited::take()?;
        descriptors::raise_limit();
        let images = self.images()?;
        let token = token(self.token_file.as_deref())?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Failure::system("start its threads"))?
            .block_on(self.serve(home, inherited, images, token))
    }

    fn images(&self) -> Result<ImageTable, Failure> {
        let this = env::current_exe().map_err(Failure::system("find this program"))?;
        let idle = Image::command([this.to_string_lossy().as_ref(), "idle"]);
        let table = ImageTable::with_idle(idle);
        Ok(match &self.images {
            Some(folder) => table.with_folder(folder)?,
            None => table,
        })
    }

    async fn serve(
        self,
        home: &Home,
        inherited: Inherited,
        images: ImageTable,
        token: Option<BearerToken>,
    ) -> Result<(), Failure> {
        let shutdown = CancellationToken::new();
        let signals = Signals::catch().map_err(Failure::system("catch signals"))?;
        tokio::spawn(signals.run(shutdown.clone()));

        let needs_socket = !inherited.has_unix();
        // Before anything is done to boxes.
        let mut listeners = self.listeners(inherited, token).await?;
        let private = service_manager::VARIABLES
            .into_iter()
            .chain([TOKEN_VARIABLE]);
        let options = RuntimeOptions::new(home.path()).private_env(private);
        let runtime = VmmRuntime::open(options).await?;
        let groups = block_in_place(ControlGroup::check);
        if let Err(error) = &groups {
            tracing::warn!(
                %error,
                "no control groups: a box that asks for processors or memory is kept to them less \
                 strictly, one that asks for nothing is not bounded, and the processes of boxes \
                 are not limited"
            );
        }
        // The home has one daemon, which may replace what an earlier one has left.
        if needs_socket {
            let socket = home.socket();
            listeners.push(Listener::unix(&socket).await?);
            tracing::info!(socket = %socket.display(), "listening");
        }
        let limits = Limits::default().apply_default_limits(groups.is_ok());
        let server = Server::new(&runtime, images, limits, &shutdown);
        let _watchdog = sd_notify::watchdog_enabled().map(|limit| {
            let watchdog = Watchdog::default().run(runtime.clone(), limit);
            AbortOnDropHandle::new(tokio::spawn(watchdog))
        });
        if !shutdown.is_cancelled() {
            service_manager::ready();
            tracing::info!(home = %home.path().display(), "ready");
        }
        let stopping = async {
            shutdown.cancelled().await;
            service_manager::stopping();
        };
        tokio::join!(server.serve(listeners), stopping);
        report(&runtime.shutdown(SHUTDOWN_TIMEOUT).await);
        Ok(())
    }

    async fn listeners(
        &self,
        inherited: Inherited,
        token: Option<BearerToken>,
    ) -> Result<Vec<Listener>, Failure> {
        let mut listeners = Vec::new();
        for listener in inherited.listeners(token.as_ref()) {
            listeners.push(listener?);
            tracing::info!("listening at a socket of the service manager");
        }
        for address in &self.listen {
            let listener = Listener::tcp(*address, token.clone()).await?;
            let address = listener.local_addr().unwrap_or(*address);
            tracing::info!(%address, "listening");
            if token.is_none() {
                tracing::warn!(%address, "without a token only /healthz and /v1/config are served");
            }
            listeners.push(listener);
        }
        Ok(listeners)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let wanted = "an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080";
    text.parse().map_err(|_| format!("it takes {wanted}"))
}

fn report(shutdown: &RuntimeShutdown) {
    let RuntimeShutdown {
        stopped,
        left_running,
        stuck,
        ..
    } = shutdown;
    tracing::info!(?stopped, ?left_running, "shut down");
    if !stuck.is_empty() {
        tracing::error!(?stuck, "boxes whose shims survived SIGKILL");
    }
}
