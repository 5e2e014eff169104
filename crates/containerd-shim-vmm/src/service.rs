use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use vmm_protocol::frames::TerminalSize;

use crate::error::ShimError;
use crate::events::timestamp;
use crate::peer;
use crate::pod::Pod;
use crate::process::ProcessState;
use crate::stdio::StdioPaths;

/// The Task API of containerd: converts requests to calls of the [`Pod`].
pub(crate) struct TaskService {
    pod: Arc<Pod>,
}

impl TaskService {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }

    /// Records the client as containerd. Other programs send other requests, for example `delete` and `ctr shim`.
    fn note_containerd(&self, context: &TtrpcContext) {
        if let Some(pid) = peer::pid(context) {
            self.pod.note_containerd(pid);
        }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.pod.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let mut response = StateResponse::new();
        response.id = request.id;
        response.exec_id = request.exec_id;
        response.bundle = container.bundle.path().to_string_lossy().into_owned();
        response.pid = self.pod.pid().await.unwrap_or_default();
        response.stdin.clone_from(&process.stdio.stdin);
        response.stdout.clone_from(&process.stdio.stdout);
        response.stderr.clone_from(&process.stdio.stderr);
        response.terminal = process.stdio.terminal;
        let status = match process.state() {
            ProcessState::Created | ProcessState::Starting(_) => Status::CREATED,
            ProcessState::Running if container.is_paused.load(Ordering::Acquire) => Status::PAUSED,
            ProcessState::Running => Status::RUNNING,
            ProcessState::Exited(exit) => {
                response.exit_status = exit.code;
                response.exited_at = MessageField::some(timestamp(exit.at));
                Status::STOPPED
            }
        };
        response.status = status.into();
        Ok(response)
    }

    async fn create(
        &self,
        context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        self.note_containerd(context);
        let mut response = CreateTaskResponse::new();
        response.pid = self.pod.create(request).await?;
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let mut response = StartResponse::new();
        response.pid = self.pod.start(&request.id, &request.exec_id).await?;
        // What follows needs less memory than the specs of the containers did.
        vmm_shim::release_free_memory();
        Ok(response)
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let (exit, pid) = self.pod.delete(&request.id, &request.exec_id).await?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.code;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.pod.container(&request.id)?;
        let pid = self.pod.pid().await?;
        let listed = container.all().into_iter().filter(|(exec_id, process)| {
            // A restarted containerd 1.7 or later deletes a container that has no process, although its exit is unread.
            exec_id.is_empty() || process.state() == ProcessState::Running
        });
        let processes = listed.map(|_| {
            let mut process = ProcessInfo::new();
            process.pid = pid;
            process
        });
        let mut response = PidsResponse::new();
        response.processes = processes.collect();
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.pod.set_paused(&request.id, true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.pod.set_paused(&request.id, false).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        const REASON: &str =
            "a container in a guest cannot be saved: its state is that of the guest";
        Err(ShimError::Unsupported(REASON).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let KillRequest {
            id,
            exec_id,
            signal,
            all,
            ..
        } = request;
        self.pod.kill(&id, &exec_id, signal, all).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let spec = serde_json::from_slice(&request.spec.value);
        let spec = spec.map_err(|error| ShimError::Spec(error.to_string()))?;
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let (id, exec_id) = (&request.id, &request.exec_id);
        self.pod.add(id, exec_id, spec, stdio).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let size = TerminalSize {
            rows: cells(request.height),
            cols: cells(request.width),
        };
        process.resize(size)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        const REASON: &str = "the resources of a container are set when it is created";
        Err(ShimError::Unsupported(REASON).into())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        let mut response = WaitResponse::new();
        response.exit_status = exit.code;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(self.pod.metrics(&request.id).await?);
        Ok(response)
    }

    async fn connect(
        &self,
        context: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        self.note_containerd(context);
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        if self.pod.container(&request.id).is_ok() {
            response.task_pid = self.pod.pid().await?;
        }
        response.version = vmm_shim::VERSION.to_owned();
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.pod.request_shutdown(request.now);
        Ok(Empty::new())
    }
}
