use std::fmt;
use std::path::Path;

use vmm_engine::{Engine, EngineError, Process};
use vmm_protocol::{HostPolicy, Invocation, PayloadSpec};

use crate::instance;

/// The engines of a program that can be its own shim.
///
/// Use it to add engines. [`run_if_shim`] is the short form for a program with only the engine
/// [`Process`].
///
/// ```no_run
/// # use std::path::Path;
/// # use vmm_shim::{Engine, EngineError, InstanceSpec, Payload};
/// struct MyVmm;
///
/// impl Engine for MyVmm {
///     fn name(&self) -> &str {
///         "my-vmm"
///     }
///
///     fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
///         Err(EngineError::Other("not implemented".to_owned()))
///     }
/// }
///
/// // Call it first in `main`.
/// vmm_shim::Shim::new().engine(MyVmm).run_if_shim();
/// // ... the rest of the program ...
/// ```
pub struct Shim {
    engines: Vec<Box<dyn Engine>>,
}

impl Shim {
    /// Creates a shim with the engine [`Process`].
    pub fn new() -> Self {
        Self {
            engines: vec![Box::new(Process)],
        }
    }

    /// Adds an engine. It replaces an earlier engine with the same name.
    #[must_use]
    pub fn engine(mut self, engine: impl Engine + 'static) -> Self {
        self.engines.push(Box::new(engine));
        self
    }

    /// Returns the engine with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&dyn Engine> {
        let engine = self
            .engines
            .iter()
            .rev()
            .find(|engine| engine.name() == name);
        engine.map(|engine| &**engine)
    }

    /// Returns the names of the engines.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.engines.iter().map(|engine| engine.name())
    }

    /// Checks the payload with its engine, as the shim does before it starts the payload. Accepts a
    /// payload whose engine this shim does not have. A daemon calls it when a box is created.
    ///
    /// # Errors
    ///
    /// The error of [`Engine::validate`].
    pub fn validate(&self, payload: &PayloadSpec, policy: &HostPolicy) -> Result<(), EngineError> {
        match self.find(&payload.engine) {
            Some(engine) => engine.validate(payload, policy),
            None => Ok(()),
        }
    }

    /// Removes what a run of the payload has left in the box directory `dir` and on the host. Does
    /// nothing for a payload whose engine this shim does not have. A daemon calls it after a shim that
    /// may have ended without doing so.
    ///
    /// # Errors
    ///
    /// The error of [`Engine::cleanup`].
    pub fn cleanup(&self, payload: &PayloadSpec, dir: &Path) -> Result<(), EngineError> {
        match self.find(&payload.engine) {
            Some(engine) => engine.cleanup(payload, dir),
            None => Ok(()),
        }
    }

    /// Runs as a shim, and never returns, if a VMM runtime has started this process as one.
    ///
    /// Otherwise returns immediately, and records that this program can be its own shim, which
    /// `vmm-runtime` requires by default.
    ///
    /// Call it first in `main`, before the program starts a thread or opens a file. A `main` with
    /// `#[tokio::main]` is too late, because it starts the threads of tokio first: signals for the
    /// shim would reach them. Such a shim does not start its payload, and reports that as the cause
    /// of the failed start. Write instead
    ///
    /// ```no_run
    /// # mod tokio { pub mod runtime { pub struct Runtime; impl Runtime {
    /// #     pub fn new() -> Result<Self, std::io::Error> { Ok(Self) }
    /// #     pub fn block_on(&self, _: impl Future<Output = ()>) {}
    /// # } } }
    /// # async fn run() {}
    /// fn main() -> Result<(), std::io::Error> {
    ///     vmm_shim::run_if_shim();
    ///     tokio::runtime::Runtime::new()?.block_on(run());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// A shim whose stdin is a device, such as a terminal, was not started by a runtime. It exits
    /// with code 64.
    pub fn run_if_shim(self) {
        vmm_engine::run_if_kvm_probe();
        match Invocation::of_this_process() {
            None => vmm_protocol::declare_shim_program(),
            Some(invocation) => instance::run(&invocation, &self),
        }
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Runs as a shim with the engine [`Process`], and never returns, if a VMM runtime has started this
/// process as one. Otherwise returns immediately.
///
/// See [`Shim::run_if_shim`].
pub fn run_if_shim() {
    Shim::new().run_if_shim();
}
