//! What a VMM runtime and its shims agree on.
//!
//! A *shim* is a child process of the runtime that hosts the payload of one box. The two exchange
//!
//! * an [`InstanceSpec`] and a [`Report`], one line of JSON each, over the shim's stdin and stdout;
//! * the records in the box directory ([`FILES`]): who the shim is ([`PidRecord`]) and how it ended
//!   ([`ExitRecord`]);
//! * the arguments by which a process knows that it is a shim ([`Invocation`]);
//! * the names of the payload's control groups ([`ControlGroup`]).
//!
//! Everything here is synchronous. Programs that run boxes use the crate `vmm-runtime`; programs
//! that bring an engine of their own use `vmm-shim`. Both re-export what they need from here.

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-protocol needs Linux");

mod bounds;
mod box_dir;
mod console_options;
mod control_group;
mod ending;
mod exit_record;
mod files;
mod identity;
mod instance_spec;
mod invocation;
mod payload_spec;
mod pid_record;
mod report;
mod runtime_process;

pub use bounds::truncate_text;
pub use box_dir::{BOX_DIR_VARIABLE, BoxFiles, FILES};
pub use console_options::ConsoleOptions;
pub use control_group::{ControlGroup, Controller, PROCESSES};
pub use ending::{Ending, FailureKind};
pub use exit_record::ExitRecord;
pub use files::{
    FileError, is_resource_exhaustion, open_log, read_file, reserve, write_file,
    write_file_unsynced,
};
pub use identity::ProcessIdentity;
pub use instance_spec::InstanceSpec;
pub use invocation::{ARGV0, Invocation, can_be_shim, declare_shim_program};
pub use payload_spec::{PayloadSpec, Ready};
pub use pid_record::PidRecord;
pub use report::{KILL_SIGNAL, Report};
pub use runtime_process::{RuntimeExited, RuntimeProcess};
