use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmm_protocol::{HostPolicy, PayloadSpec};

use crate::{RuntimeError, ShimProgram};

/// A function that checks the payload of a box, see [`RuntimeOptions::payload_check`].
#[derive(Clone)]
pub struct PayloadCheck(Arc<Check>);

type Check = dyn Fn(&PayloadSpec) -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync;

/// A function that removes what a payload has left, see [`RuntimeOptions::payload_cleanup`].
#[derive(Clone)]
pub struct PayloadCleanup(Arc<Cleanup>);

type Cleanup =
    dyn Fn(&PayloadSpec, &Path) -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync;

/// Options for [`VmmRuntime::open`](crate::VmmRuntime::open).
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
    /// The directory that holds the boxes; created if it does not exist. Only one runtime at a time
    /// can have it open. It must belong to the user of this process, and no other user may be able
    /// to write to it.
    pub home: PathBuf,
    /// The directory in which engines keep what they have found out about the host, such as whether KVM
    /// works. Runtimes can share it. No other user may be able to write to it. By default `cache` in the home.
    pub cache_dir: Option<PathBuf>,
    /// The program that shims execute. By default the current program, whose `main` must then begin
    /// with `vmm_shim::run_if_shim()`. Either is opened once: an upgrade that replaces the file does
    /// not affect an open runtime.
    pub shim_program: Option<ShimProgram>,
    /// Environment variables of this process, such as secrets, that shims and health checks do not
    /// inherit.
    pub private_env: Vec<OsString>,
    /// The number of *warm shims*: shims that the runtime starts before it needs them, so that a start
    /// of a box takes less time. Each waits for a box, ends with the runtime as an attached shim does,
    /// and is replaced after a start has taken it. If none waits, a start takes as long as without
    /// them. 0 by default. A shim has the environment that this process had when it was started.
    pub warm_shims: usize,
    /// The time from the start of a shim until its payload must be ready; 30 s by default.
    pub start_timeout: Duration,
    /// The time between two sweeps of the reaper; 250 ms by default.
    pub sweep_interval: Duration,
    /// The space, in bytes, that must be free on the disk of the home to open the runtime, and to
    /// create or start a box; 0 by default. Boxes that run keep running when less is free, and can
    /// be stopped and removed: the reserve is for their records. One inode for every 16 KiB must be
    /// free, too.
    pub disk_reserve: u64,
    /// Checks the payload of a box that is created, usually `vmm_shim::Shim::validate`. By default the
    /// engine checks it only when the box is started.
    pub payload_check: Option<PayloadCheck>,
    /// Removes what a payload has left in its box directory and on the host, usually
    /// `vmm_shim::Shim::cleanup`. The runtime calls it when the shim may have ended without doing so,
    /// also under an earlier runtime, and after all processes of the run have ended. After an error it
    /// calls it again, and the box cannot start until it succeeds. It must return within a few seconds:
    /// the cleanups of other boxes wait for it. By default nothing is removed.
    pub payload_cleanup: Option<PayloadCleanup>,
    /// What the operator of the host decides for all payloads: the confinement rules that are disabled,
    /// and what specs may contain. By default all rules are applied.
    pub policy: HostPolicy,
    /// The users of the boxes whose engine starts a VMM: each has one of its own, with the group of the
    /// same number, until it is removed. Runtimes on one host need ranges that do not overlap.
    ///
    /// By default 1879048192-1879113727, if this process is root and its user namespace has them.
    /// Otherwise the VMM has the user of this process.
    pub box_uids: Option<RangeInclusive<u32>>,
    /// A token that shuts the runtime down when it is cancelled, with
    /// [`shutdown_timeout`](Self::shutdown_timeout).
    pub shutdown_token: Option<CancellationToken>,
    /// The time that attached boxes have to stop in a shutdown by token; 10 s by default.
    pub shutdown_timeout: Duration,
}

impl RuntimeOptions {
    /// Creates options with this home and defaults for the rest.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            cache_dir: None,
            shim_program: None,
            private_env: Vec::new(),
            warm_shims: 0,
            start_timeout: Duration::from_secs(30),
            sweep_interval: Duration::from_millis(250),
            disk_reserve: 0,
            payload_check: None,
            payload_cleanup: None,
            policy: HostPolicy::default(),
            box_uids: None,
            shutdown_token: None,
            shutdown_timeout: Duration::from_secs(10),
        }
    }

    /// Sets [`cache_dir`](Self::cache_dir).
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Sets [`shim_program`](Self::shim_program).
    #[must_use]
    pub fn shim_program(mut self, program: ShimProgram) -> Self {
        self.shim_program = Some(program);
        self
    }

    /// Sets [`private_env`](Self::private_env).
    #[must_use]
    pub fn private_env<S: Into<OsString>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.private_env = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`warm_shims`](Self::warm_shims).
    #[must_use]
    pub fn warm_shims(mut self, count: usize) -> Self {
        self.warm_shims = count;
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

    /// Sets [`disk_reserve`](Self::disk_reserve).
    #[must_use]
    pub fn disk_reserve(mut self, bytes: u64) -> Self {
        self.disk_reserve = bytes;
        self
    }

    /// Sets [`payload_check`](Self::payload_check).
    #[must_use]
    pub fn payload_check<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        check: impl Fn(&PayloadSpec) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        let check = move |payload: &PayloadSpec| check(payload).map_err(Into::into);
        self.payload_check = Some(PayloadCheck(Arc::new(check)));
        self
    }

    /// Sets [`payload_cleanup`](Self::payload_cleanup).
    #[must_use]
    pub fn payload_cleanup<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        cleanup: impl Fn(&PayloadSpec, &Path) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        let cleanup =
            move |payload: &PayloadSpec, dir: &Path| cleanup(payload, dir).map_err(Into::into);
        self.payload_cleanup = Some(PayloadCleanup(Arc::new(cleanup)));
        self
    }

    /// Sets [`policy`](Self::policy).
    #[must_use]
    pub fn policy(mut self, policy: HostPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets [`box_uids`](Self::box_uids).
    #[must_use]
    pub fn box_uids(mut self, range: RangeInclusive<u32>) -> Self {
        self.box_uids = Some(range);
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

impl PayloadCheck {
    pub(crate) fn check(&self, payload: &PayloadSpec) -> Result<(), RuntimeError> {
        (self.0)(payload).map_err(|source| RuntimeError::InvalidPayload {
            engine: payload.engine.clone(),
            source,
        })
    }
}

impl fmt::Debug for PayloadCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadCheck")
    }
}

impl PayloadCleanup {
    pub(crate) fn run(&self, payload: &PayloadSpec, dir: &Path) -> io::Result<()> {
        (self.0)(payload, dir).map_err(io::Error::other)
    }
}

impl fmt::Debug for PayloadCleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadCleanup")
    }
}
