use std::sync::Arc;

use ulid::Ulid;
use vmm_protocol::BoxDir;

use crate::core::Core;
use crate::{ExecError, ExecSpec, Execution, ExecutionInfo, RuntimeError, VmmRuntime, exec};

/// Commands in boxes.
impl VmmRuntime {
    /// Runs a command in a box, beside its payload: with its environment and limits, and, in a
    /// guest, inside the guest. An empty [`ExecSpec::id`] is replaced by a new one.
    ///
    /// ```no_run
    /// # use vmm_runtime::{ExecSpec, VmmRuntime};
    /// # async fn example(runtime: VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
    /// let spec = ExecSpec::new("", ["uname", "-r"]);
    /// let output = runtime.exec("web", spec).await?.output().await?;
    /// println!("{}", String::from_utf8_lossy(&output.stdout));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`], [`RuntimeError::NotRunning`];
    /// [`RuntimeError::Exec`] if the command cannot be started.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the command may run all the same.
    pub async fn exec(
        &self,
        id_or_name: &str,
        mut spec: ExecSpec,
    ) -> Result<Execution, RuntimeError> {
        if spec.id.is_empty() {
            spec.id = format!("exec-{}", Ulid::generate());
        }
        self.request_shim(id_or_name, |core, dir| exec::exec(core, dir, spec))
            .await
    }

    /// Attaches to an execution that was started earlier, also by a previous runtime. Its kept
    /// output comes first.
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec); [`ExecError::Refused`](crate::ExecError::Refused) with the kind
    /// `NotFound`, or `InUse` while another client is attached.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn attach(
        &self,
        id_or_name: &str,
        execution: &str,
    ) -> Result<Execution, RuntimeError> {
        let execution = execution.to_owned();
        self.request_shim(id_or_name, |core, dir| exec::attach(core, dir, execution))
            .await
    }

    /// Returns the executions of a box: those that run, and the last 256 that have ended.
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec).
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn executions(&self, id_or_name: &str) -> Result<Vec<ExecutionInfo>, RuntimeError> {
        self.request_shim(id_or_name, |_, dir| exec::list(dir))
            .await
    }

    /// Connects to the shim of a running box, on the runtime's own thread: the caller may not be in
    /// a tokio runtime.
    async fn request_shim<T, F>(
        &self,
        id_or_name: &str,
        request: impl FnOnce(Arc<Core>, BoxDir) -> F,
    ) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ExecError>> + Send + 'static,
    {
        let bx = self.core().boxes.find(id_or_name)?;
        let id = bx.id().clone();
        if bx.shim().is_none() {
            return Err(RuntimeError::NotRunning { id });
        }
        let request = request(Arc::clone(self.core()), bx.dir().clone());
        let work = async move {
            request
                .await
                .map_err(|source| RuntimeError::Exec { id, source })
        };
        self.core().run_detached(work).await
    }
}
