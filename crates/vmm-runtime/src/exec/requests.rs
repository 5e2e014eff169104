use std::sync::Arc;

use serde_json::Value;
use ulid::Ulid;
use vmm_protocol::BoxDir;
use vmm_protocol::frames::HostMessage;

use crate::core::Core;
use crate::metrics::ExecutionCounters;
use crate::{
    ExecError, ExecSpec, Execution, ExecutionInfo, RuntimeError, TerminalSize, VmmRuntime, exec,
};

/// Commands in boxes, and other requests to their shims.
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
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`], [`RuntimeError::NotRunning`],
    /// [`RuntimeError::Starting`] until the payload is ready, [`RuntimeError::Paused`];
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
        self.check_not_paused(id_or_name)?;
        set_id(&mut spec);
        let counters = self.execution_counters(id_or_name)?;
        self.request_shim(id_or_name, |core, dir| {
            exec::exec(core, dir, counters, spec)
        })
        .await
    }

    /// Starts a command in a box, as [`exec`](Self::exec) does, without attaching to it. Returns its id.
    ///
    /// All output is kept for up to 10 s for a client that [attaches](Self::attach).
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the command may run all the same.
    pub async fn start_execution(
        &self,
        id_or_name: &str,
        mut spec: ExecSpec,
    ) -> Result<String, RuntimeError> {
        self.check_not_paused(id_or_name)?;
        set_id(&mut spec);
        let counters = self.execution_counters(id_or_name)?;
        self.request_shim(id_or_name, |core, dir| {
            exec::start(core, dir, counters, spec)
        })
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
        let counters = self.execution_counters(id_or_name)?;
        self.request_shim(id_or_name, |core, dir| {
            exec::attach(core, dir, counters, execution)
        })
        .await
    }

    /// Returns the executions of a box: those that run, whose output is being read or waits for a client, and
    /// the last 64 others.
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

    /// Sends a signal, 1 to 64, to an execution and its process group, without attaching to it.
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec); [`ExecError::Refused`](crate::ExecError::Refused) with the kind
    /// `NotFound`, [`ExecError::Ended`](crate::ExecError::Ended).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the signal may be sent all the same.
    pub async fn signal_execution(
        &self,
        id_or_name: &str,
        execution: &str,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        let message = HostMessage::signal(signal);
        self.send_to_execution(id_or_name, execution, message).await
    }

    /// Resizes the terminal of an execution, without attaching to it.
    ///
    /// # Errors
    ///
    /// Those of [`signal_execution`](Self::signal_execution).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the terminal may be resized all the same.
    pub async fn resize_execution(
        &self,
        id_or_name: &str,
        execution: &str,
        size: TerminalSize,
    ) -> Result<(), RuntimeError> {
        let message = HostMessage::Resize(size);
        self.send_to_execution(id_or_name, execution, message).await
    }

    async fn send_to_execution(
        &self,
        id_or_name: &str,
        execution: &str,
        message: HostMessage,
    ) -> Result<(), RuntimeError> {
        let execution = execution.to_owned();
        self.request_shim(id_or_name, |_, dir| exec::send(dir, execution, message))
            .await
    }

    /// Kills an execution, and removes it from the list of [`executions`](Self::executions). A client
    /// that is attached gets the ending.
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec); [`ExecError::Refused`](crate::ExecError::Refused) with the kind
    /// `NotFound`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the execution may be killed all the same.
    pub async fn remove_execution(
        &self,
        id_or_name: &str,
        execution: &str,
    ) -> Result<(), RuntimeError> {
        let execution = execution.to_owned();
        self.request_shim(id_or_name, |_, dir| exec::remove(dir, execution))
            .await
    }

    /// Sends a box a request that only its engine knows, and returns the result. The engine `qemu` takes
    /// queries of the QEMU Machine Protocol, also while the guest is paused; the engine `process` takes no request.
    ///
    /// ```no_run
    /// # use vmm_runtime::VmmRuntime;
    /// # async fn example(runtime: VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
    /// let request = serde_json::json!({"execute": "query-status"});
    /// let result = runtime.call("web", request).await?;
    /// println!("{}", result["status"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`], [`RuntimeError::NotRunning`],
    /// [`RuntimeError::Starting`] until the payload is ready; [`RuntimeError::Exec`] with
    /// [`ExecError::Refused`](crate::ExecError::Refused) of the kind `Unsupported` if the engine takes no
    /// request, `Invalid` if it does not know this one, or `Failed` with the cause.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the request may be carried out all the same.
    pub async fn call(&self, id_or_name: &str, request: Value) -> Result<Value, RuntimeError> {
        self.request_shim(id_or_name, |_, dir| exec::call(dir, request))
            .await
    }

    pub(super) fn check_not_paused(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        let bx = self.core().boxes.find(id_or_name)?;
        if bx.is_paused() {
            let id = bx.id().clone();
            return Err(RuntimeError::Paused { id });
        }
        Ok(())
    }

    fn execution_counters(&self, id_or_name: &str) -> Result<Arc<ExecutionCounters>, RuntimeError> {
        Ok(Arc::clone(self.core().boxes.find(id_or_name)?.executions()))
    }

    /// Connects to the shim of a running box, on the runtime's own thread: the caller may not be in
    /// a tokio runtime.
    pub(crate) async fn request_shim<T, F>(
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
        bx.ready_shim()?;
        let request = request(Arc::clone(self.core()), bx.dir().clone());
        let work = async move {
            request
                .await
                .map_err(|source| RuntimeError::Exec { id, source })
        };
        self.core().run_detached(work).await
    }
}

/// Sets the id of the execution, if the caller has not.
fn set_id(spec: &mut ExecSpec) {
    if spec.id.is_empty() {
        spec.id = format!("exec-{}", Ulid::generate());
    }
}
