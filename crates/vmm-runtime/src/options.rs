use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How to open a [`VmmRuntime`](crate::VmmRuntime).
///
/// ```
/// use std::time::Duration;
/// use vmm_runtime::RuntimeOptions;
///
/// let options = RuntimeOptions::new("/var/lib/boxes").start_timeout(Duration::from_secs(5));
/// assert_eq!(options.home.to_str(), Some("/var/lib/boxes"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// The directory that holds the boxes, made if it is not there. One runtime at a time has it. It
    /// must belong to the user of this process, and no other user may be able to write to it.
    pub home: PathBuf,
    /// The program that shims run; by default this very program, which must call
    /// [`vmm_shim::run_if_shim`] first of all in its `main`.
    pub shim_program: Option<PathBuf>,
    /// Variables of this process's environment that are for itself alone, such as its secrets:
    /// shims and health checks do not get them.
    pub private_env: Vec<OsString>,
    /// How long a box may take from the start of its shim until its payload is ready; 30 s by
    /// default.
    pub start_timeout: Duration,
    /// How often the reaper sweeps; 250 ms by default.
    pub sweep_interval: Duration,
    /// Cancelling it shuts the runtime down, with [`shutdown_timeout`](Self::shutdown_timeout).
    pub shutdown_token: Option<CancellationToken>,
    /// How long attached boxes may take to stop in a shutdown by token; 10 s by default.
    pub shutdown_timeout: Duration,
}

impl RuntimeOptions {
    /// Defaults for everything but the home.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            shim_program: None,
            private_env: Vec::new(),
            start_timeout: Duration::from_secs(30),
            sweep_interval: Duration::from_millis(250),
            shutdown_token: None,
            shutdown_timeout: Duration::from_secs(10),
        }
    }

    /// Sets [`shim_program`](Self::shim_program).
    #[must_use]
    pub fn shim_program(mut self, path: impl Into<PathBuf>) -> Self {
        self.shim_program = Some(path.into());
        self
    }

    /// Sets [`private_env`](Self::private_env).
    #[must_use]
    pub fn private_env<S: Into<OsString>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.private_env = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`start_timeout`](Self::start_timeout).
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Sets [`sweep_interval`](Self::sweep_interval).
    #[must_use]
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.sweep_interval = interval;
        self
    }

    /// Sets [`shutdown_token`](Self::shutdown_token).
    #[must_use]
    pub fn shutdown_token(mut self, token: CancellationToken) -> Self {
        self.shutdown_token = Some(token);
        self
    }

    /// Sets [`shutdown_timeout`](Self::shutdown_timeout).
    #[must_use]
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }
}
