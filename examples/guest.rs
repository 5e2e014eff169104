//! A box that is a virtual machine: boots a Linux guest with the engine `qemu`, runs a command in it, and
//! powers it off.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vmm_runtime::{BoxSpec, Ending, ExecSpec, HostPolicy, RuntimeOptions, VmmRuntime};
use vmm_shim::{Disk, Qemu, QemuOptions, Shim};

const USAGE: &str = "usage: guest KERNEL INITRD ROOT COMMAND...
  KERNEL  a Linux kernel, such as /boot/vmlinuz
  INITRD  an initial RAM file system whose init is vmm-agent
  ROOT    an image of the root file system
Needs qemu-system-x86_64. `shimd image build` makes the files kernel, initrd and rootfs, in images/NAME of the home of
shimd; README.md shows how.";

/// Without KVM, a boot takes seconds.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // This program is its own shim, which knows the engine.
    let shim = || Shim::new().engine(Qemu);
    shim().run_if_shim();
    let mut args = std::env::args().skip(1);
    let files: Vec<_> = args.by_ref().take(3).map(PathBuf::from).collect();
    let command: Vec<_> = args.collect();
    let missing = files.iter().find(|file| !file.exists());
    let ([kernel, initrd, root], None, false) = (&files[..], missing, command.is_empty()) else {
        if let Some(file) = missing {
            eprintln!("{} does not exist", file.display());
        }
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(64)); // EX_USAGE, sysexits(3)
    };
    let mut guest = QemuOptions::new(kernel);
    guest.initrd = Some(initrd.clone());
    // The changes of the guest are in its memory, so several guests can share the image.
    guest.disks = vec![Disk::read_only(root)];
    guest.cmdline = "quiet vmm.root=/dev/vda".to_owned();
    guest.agent = true;

    tokio::runtime::Runtime::new()?.block_on(async {
        let home = tempfile::Builder::new().prefix("vmm-").tempdir()?;
        let options = RuntimeOptions::new(home.path())
            .start_timeout(BOOT_TIMEOUT)
            // Rejects a box whose options are wrong when it is created, not when it is started.
            .payload_check(move |payload| shim().validate(payload, &HostPolicy::default()))
            .payload_cleanup(move |payload, dir| shim().cleanup(payload, dir));
        let runtime = VmmRuntime::open(options).await?;
        let ending = tokio::select! {
            ending = boot_and_run(&runtime, &guest, command) => ending,
            _ = tokio::signal::ctrl_c() => Ok(Ending::Signaled { signal: 2 }), // SIGINT
        };
        // Powers the guest off if it still runs.
        runtime.shutdown(Duration::from_secs(10)).await;
        Ok(match ending? {
            Ending::Exited { code } => ExitCode::from(u8::try_from(code)?),
            ending => {
                eprintln!("the command ended with {ending:?}");
                ExitCode::FAILURE
            }
        })
    })
}

/// Boots the guest, runs the command in it, and prints its output. Returns how the command ended.
async fn boot_and_run(
    runtime: &VmmRuntime,
    guest: &QemuOptions,
    command: Vec<String>,
) -> Result<Ending, Box<dyn Error>> {
    let bx = runtime.create(BoxSpec::of(guest.to_payload())).await?;
    let begun = Instant::now();
    runtime.start(&bx.id).await?;
    eprintln!("the guest booted in {:.1} s", begun.elapsed().as_secs_f64());
    let execution = runtime.exec(&bx.id, ExecSpec::new("", command)).await?;
    let output = execution.output().await?;
    io::stdout().write_all(&output.stdout)?;
    io::stderr().write_all(&output.stderr)?;
    let bx = runtime.stop(&bx.id).await?;
    eprintln!("the guest ended: {:?}", bx.ending);
    Ok(output.ending)
}
