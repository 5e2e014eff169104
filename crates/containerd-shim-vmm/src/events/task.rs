use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics::*;

use super::{EventQueue, timestamp};
use crate::process::Exit;

/// The events of tasks. The exec ID of the first process of a container is empty.
impl EventQueue {
    pub(crate) fn publish_create(&self, request: CreateTaskRequest, pid: u32) {
        let mut io = TaskIO::new();
        io.stdin = request.stdin;
        io.stdout = request.stdout;
        io.stderr = request.stderr;
        io.terminal = request.terminal;
        let mut event = TaskCreate::new();
        event.container_id = request.id;
        event.bundle = request.bundle;
        event.rootfs = request.rootfs;
        event.io = MessageField::some(io);
        event.pid = pid;
        self.publish(TASK_CREATE_EVENT_TOPIC, &event);
    }

    pub(crate) fn publish_exec_added(&self, id: &str, exec_id: &str) {
        let mut event = TaskExecAdded::new();
        event.container_id = id.to_owned();
        event.exec_id = exec_id.to_owned();
        self.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
    }

    pub(crate) fn publish_start(&self, id: &str, exec_id: &str, pid: u32) {
        if exec_id.is_empty() {
            let mut event = TaskStart::new();
            event.container_id = id.to_owned();
            event.pid = pid;
            self.publish(TASK_START_EVENT_TOPIC, &event);
        } else {
            let mut event = TaskExecStarted::new();
            event.container_id = id.to_owned();
            event.exec_id = exec_id.to_owned();
            event.pid = pid;
            self.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
    }

    pub(crate) fn publish_exit(&self, id: &str, exec_id: &str, pid: u32, exit: Exit) {
        let mut event = TaskExit::new();
        event.container_id = id.to_owned();
        // That of a first process is the container's.
        event.id = if exec_id.is_empty() { id } else { exec_id }.to_owned();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = MessageField::some(timestamp(exit.at));
        self.publish(TASK_EXIT_EVENT_TOPIC, &event);
    }

    pub(crate) fn publish_out_of_memory(&self, id: &str) {
        let mut event = TaskOOM::new();
        event.container_id = id.to_owned();
        self.publish(TASK_OOM_EVENT_TOPIC, &event);
    }

    pub(crate) fn publish_paused(&self, id: &str, is_paused: bool) {
        let container_id = id.to_owned();
        if is_paused {
            let mut event = TaskPaused::new();
            event.container_id = container_id;
            self.publish(TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            let mut event = TaskResumed::new();
            event.container_id = container_id;
            self.publish(TASK_RESUMED_EVENT_TOPIC, &event);
        }
    }

    /// Adds the event of a deleted container. That of another process has none.
    pub(crate) fn publish_delete(&self, id: &str, pid: u32, exit: Exit) {
        let mut event = TaskDelete::new();
        event.container_id = id.to_owned();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = MessageField::some(timestamp(exit.at));
        self.publish(TASK_DELETE_EVENT_TOPIC, &event);
    }
}
