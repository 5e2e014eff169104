use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::time::ClockId;
use vmm_protocol::frames::BootPhase;

use crate::error::AgentError;
use crate::kernel_command_line::KernelCommandLine;
use crate::{init, mounts, port, root};

/// The kernel modules of the initrd. Its file `order` names those to load, one a line, each after
/// those that it needs.
const MODULES_DIR: &str = "/modules";

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Returns whether the kernel has started this process as the init of an initrd: nothing is mounted
/// yet. In a container, whose `/proc` is mounted, pid 1 must not mount or power off anything.
pub(crate) fn is_guest() -> bool {
    init::is_init() && !Path::new("/proc/self").exists()
}

/// Prepares the guest. Returns the serial port to the host, and how long each phase took.
pub(crate) fn boot() -> Result<(OwnedFd, Vec<BootPhase>), AgentError> {
    let mut phases = Phases::default();
    phases.end("kernel");
    mounts::mount_kernel_file_systems()?;
    phases.end("mounts");
    load_modules();
    // Fails on a kernel without networking.
    let _ = vmm_network::bring_up_loopback();
    phases.end("modules");
    let command_line = fs::read_to_string("/proc/cmdline")
        .map_err(AgentError::system("read the kernel command line"))?;
    let command_line = KernelCommandLine::parse(&command_line);
    root::enter(&command_line)?;
    mounts::mount_tmp()?;
    for share in &command_line.shares {
        mounts::mount_share(share)?;
    }
    phases.end("root");
    let port = port::open()?;
    phases.end("port");
    Ok((port, phases.phases))
}

/// Loads the modules of the initrd, and frees their memory.
fn load_modules() {
    let order = fs::read_to_string(format!("{MODULES_DIR}/order")).unwrap_or_default();
    for name in order.lines() {
        // The missing device is reported later, if it is needed.
        if let Err(error) = load_module(name) {
            eprintln!("vmm-agent: cannot load the module {name}: {error}");
        }
    }
    let _ = fs::remove_dir_all(MODULES_DIR);
}

fn load_module(name: &str) -> io::Result<()> {
    let file = File::open(format!("{MODULES_DIR}/{name}"))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Calls the function until it returns a value, or the time is over.
pub(crate) fn wait_for<T>(timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() >= timeout {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The phases of the boot that have ended.
#[derive(Default)]
struct Phases {
    /// The time of the last end, since the kernel started its clock.
    last: Duration,
    phases: Vec<BootPhase>,
}

impl Phases {
    fn end(&mut self, name: &str) {
        let now = ClockId::CLOCK_MONOTONIC
            .now()
            .map_or(self.last, Duration::from);
        let micros = now.saturating_sub(self.last).as_micros();
        self.last = now;
        self.phases.push(BootPhase {
            name: name.to_owned(),
            micros: u64::try_from(micros).unwrap_or(u64::MAX),
        });
    }
}
