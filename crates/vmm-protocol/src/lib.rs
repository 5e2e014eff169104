//! The protocol between a VMM runtime and its shims.
//!
//! A *shim* is a child process of the runtime that hosts one *payload*: a command, or a guest. A
//! *box* is one managed payload with its spec, its directory and its shim. This crate defines
//! everything that the two processes must agree on:
//!
//! * the messages over the shim's stdin and stdout, one line of JSON each: [`InstanceSpec`] and
//!   [`Report`], and for a shim that has started before its box the [`Assignment`];
//! * the files in the box directory ([`BoxDir`]), such as the pid and identity of the shim
//!   ([`PidRecord`]), and how it ended ([`ExitRecord`]);
//! * the arguments by which a process recognizes that it is a shim ([`Invocation`]);
//! * the names of the payload's control groups ([`ControlGroup`]);
//! * the control frames between a runtime, a shim and a guest agent ([`frames`]);
//! * what identifies a process ([`ProcessIdentity`]), and how it is read from `/proc` ([`procfs`],
//!   [`pidfd`]); how a thread waits for descriptors ([`poll`]).
//!
//! Use this crate for a tool that reads a box directory without a runtime. To run boxes, use
//! `vmm-runtime`; to add an engine, use `vmm-shim`. Both re-export what they need from here.
//!
//! All functions are synchronous and may block on the file system.
//!
//! ```
//! use vmm_protocol::{BoxDir, Ending, PidLookup};
//!
//! # use vmm_protocol::{ExitRecord, PidRecord};
//! # let home = tempfile::tempdir()?;
//! # let path = home.path();
//! let dir = BoxDir::new(path);
//! # dir.write_shim_record(&PidRecord::of_this_process()?)?;
//! // Is the shim of this box still alive?
//! let shim = dir.shim_record()?.expect("the box was started");
//! assert!(matches!(shim.lookup()?, PidLookup::Alive(_)));
//!
//! // A shim writes its exit record last.
//! # let ending = Ending::Exited { code: 0 };
//! # dir.write_exit_record(&ExitRecord { pid: shim.pid, requested: false, ending })?;
//! let exit = dir.exit_record()?.expect("the shim has ended");
//! assert_eq!(exit.ending, Ending::Exited { code: 0 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-protocol needs Linux");

mod assignment;
mod boot_times;
mod bounds;
mod box_dir;
mod box_files;
mod causes;
mod console_lines;
mod console_options;
mod control_group;
mod ending;
mod exit_record;
mod failure_kind;
mod files;
pub mod frames;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod host_policy;
mod identity;
mod instance_spec;
mod invocation;
mod json_line;
pub mod network;
mod panic_message;
mod payload_spec;
mod pid_record;
pub mod pidfd;
pub mod pod;
pub mod poll;
pub mod procfs;
mod remove_tree;
mod report;
mod runtime_process;
pub mod stop_signal;

pub use assignment::Assignment;
pub use boot_times::BootTimes;
pub use bounds::truncate_text;
pub use box_dir::{BOX_DIR_VARIABLE, BoxDir};
pub use box_files::{BoxFiles, FILES};
pub use causes::with_causes;
pub use console_options::ConsoleOptions;
pub use control_group::{ControlGroup, Controller, GroupUsage, Members, PROCS_FILE};
pub use ending::{Ending, GuestEvent};
pub use exit_record::ExitRecord;
pub use failure_kind::FailureKind;
pub use files::{
    FileError, is_resource_exhaustion, open_log, read_file, reserve_space, sync_parent_directory,
    write_file, write_file_unsynced,
};
pub use host_policy::{ConfinementRule, HostPolicy, UnappliedRule};
pub use identity::{ProcessIdentity, boot_id};
pub use instance_spec::InstanceSpec;
pub use invocation::{ARGV0, Invocation, can_be_shim, declare_shim_program};
pub use json_line::{read_line, to_line};
pub use panic_message::panic_message;
pub use payload_spec::{DEFAULT_PATH, PayloadSpec, PayloadSpecError, Ready};
pub use pid_record::{PidLookup, PidRecord};
pub use remove_tree::{RemovalProgress, remove_tree};
pub use report::{KILL_SIGNAL, Report};
pub use runtime_process::{RuntimeExited, RuntimeProcess};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
