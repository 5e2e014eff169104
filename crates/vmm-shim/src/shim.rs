use std::fmt;

use vmm_engine::{Engine, Process};
use vmm_protocol::Invocation;

use crate::instance;

/// A program that can be its own shim, with the engines it brings.
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
///         Err(EngineError::Other("no such machine".to_owned()))
///     }
/// }
///
/// // First of all in `main`.
/// vmm_shim::Shim::new().engine(MyVmm).run_if_shim();
/// // ... the program itself ...
/// ```
pub struct Shim {
    engines: Vec<Box<dyn Engine>>,
}

impl Shim {
    /// With the engine [`Process`].
    pub fn new() -> Self {
        Self {
            engines: vec![Box::new(Process)],
        }
    }

    /// Adds an engine; of two with one name, the later one counts.
    #[must_use]
    pub fn engine(mut self, engine: impl Engine + 'static) -> Self {
        self.engines.push(Box::new(engine));
        self
    }

    /// Becomes a shim, and never returns, if this process was started as one; otherwise returns at
    /// once, and the runtime knows that this program can be its own shim.
    ///
    /// A shim of a box whose stdin is a device, such as a terminal, was not started by a runtime,
    /// and ends with code 64.
    ///
    /// Call it first of all in `main`, before any thread is started and any file is opened.
    pub fn run_if_shim(self) {
        match Invocation::of_this_process() {
            None => vmm_protocol::declare_shim_program(),
            Some(Invocation::Box { .. }) => instance::run(self.engines),
            Some(Invocation::Payload {
                shim,
                confinement,
                command,
            }) => vmm_engine::become_payload(shim, &confinement, &command),
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
        f.debug_list()
            .entries(self.engines.iter().map(|engine| engine.name()))
            .finish()
    }
}

/// [`Shim::run_if_shim`], with the engine [`Process`] alone.
pub fn run_if_shim() {
    Shim::new().run_if_shim();
}
