//! Compares a box with a guest with QEMU started by hand: `cargo bench --bench guests`.
//!
//! Both run the same guest with the same arguments. Each row alternates between the two and compares
//! them in pairs, because machines drift. Needs QEMU and the files that `.ci/guest-files` downloads.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod bare_guest;
mod guest_program;
#[allow(dead_code, reason = "the benchmark of boxes uses the rest")]
#[path = "../../../crates/vmm-runtime/benches/boxes/host.rs"]
mod host;
#[path = "../../../crates/vmm-agent/tests/common/image.rs"]
mod image;
#[path = "../../../crates/vmm-runtime/benches/boxes/pairs.rs"]
mod pairs;

use std::path::Path;
use std::time::{Duration, Instant};

use bare_guest::{BareGuest, Invocation};
use pairs::{Pairs, median, met};
use tempfile::TempDir;
use vmm_runtime::{
    BoxInfo, BoxSpec, Ending, ExecSpec, Removal, RuntimeOptions, ShimProgram, VmmRuntime,
};
use vmm_shim::{Disk, Qemu, QemuOptions, Shim};

const BOOTS: usize = 15;
const BOXES: usize = 5;
const ROUND_TRIPS: usize = 300;

const TRUE: [&str; 2] = ["busybox", "true"];

/// How long a boot may take. It takes 2 s on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

const MAX_BOOT_RATIO: f64 = 1.05;
const MAX_EXEC_RATIO: f64 = 3.0;
const MAX_PSS_KIB: f64 = 1024.0;

fn main() {
    Shim::new().engine(Qemu).run_if_shim();
    let Some(files) = image::find_files() else {
        return;
    };
    // `cargo test --benches` only checks that it runs.
    let short = !std::env::args().any(|arg| arg == "--bench");
    let shim = if short { None } else { host::static_shim() };
    let tokio = tokio::runtime::Runtime::new().expect("a tokio runtime");
    tokio.block_on(run(short, shim.as_deref(), &files));
}

async fn run(short: bool, shim: Option<&Path>, files: &Path) {
    let dir = TempDir::new().expect("a directory");
    let guest = guest(files, dir.path());
    let mut options = RuntimeOptions::new(dir.path().join("home")).start_timeout(BOOT_TIMEOUT);
    options.shim_program = shim.map(|shim| ShimProgram::at(shim).expect("a shim program"));
    let runtime = VmmRuntime::open(options).await.expect("a runtime");
    let (boots, boxes, round_trips) = if short {
        (1, 1, 3)
    } else {
        (BOOTS, BOXES, ROUND_TRIPS)
    };
    let program = shim.map_or("this benchmark".into(), |shim| shim.display().to_string());
    println!("Shim program: {program}.\n");
    println!(
        "| first, and second | first | second | ratio | target | met |\n|---|---|---|---|---|---|"
    );

    let (bx, _) = boot(&runtime, &guest).await;
    let invocation = Invocation::of(bx.payload_pid.expect("QEMU"), &guest);
    remove(&runtime, &bx).await;
    let mut starts = Pairs::default();
    for number in 0..boots {
        // Each is first in half of the pairs.
        let first = (number % 2 == 0).then(|| boot_bare(&invocation).1);
        let (bx, box_start) = boot(&runtime, &guest).await;
        remove(&runtime, &bx).await;
        let bare_start = first.unwrap_or_else(|| boot_bare(&invocation).1);
        starts.add(box_start, bare_start);
    }
    starts.print("boot to ready of a box, and by hand", Some(MAX_BOOT_RATIO));

    let (bx, _) = boot(&runtime, &guest).await;
    let (mut bare, _) = boot_bare(&invocation);
    let mut round_trips_of_port = Pairs::default();
    let mut execs = Pairs::default();
    let mut spawns_of_box = Pairs::default();
    let mut spawns = Pairs::default();
    for _ in 0..round_trips {
        // The other guest has used the caches of the processor since, so each guest gets one untimed command first.
        run_true(&runtime, &bx).await;
        let start = Instant::now();
        run_true(&runtime, &bx).await;
        let exec = start.elapsed();
        bare.exec(&TRUE);
        let round_trip = bare.ping();
        let spawn = bare.spawn_in_guest(&TRUE);
        round_trips_of_port.add(exec, round_trip);
        execs.add(exec, bare.exec(&TRUE));
        spawns_of_box.add(exec, spawn);
        spawns.add(spawn, round_trip);
    }
    round_trips_of_port.print(
        "`exec` of `true`, and a round trip of the serial port",
        Some(MAX_EXEC_RATIO),
    );
    // What no agent can be faster than: the process in the guest.
    spawns.print(
        "`vfork`, `exec` and wait for `true` by a program in the guest, and a round trip",
        None,
    );
    spawns_of_box.print("`exec` of `true`, and the same by that program", None);
    execs.print("`exec` of `true`, and the same frames by hand", None);
    drop(bare);

    let mut running = vec![bx];
    while running.len() < boxes {
        let (bx, _) = boot(&runtime, &guest).await;
        run_true(&runtime, &bx).await;
        running.push(bx);
    }
    print_memory(&running);
    for bx in &running {
        remove(&runtime, bx).await;
    }
    runtime.shutdown(Duration::from_secs(10)).await;
}

/// Prints the memory that a box with a guest takes beside QEMU: that of its shim.
fn print_memory(boxes: &[BoxInfo]) {
    let shims = median(boxes.iter().filter_map(|bx| host::pss_kib(bx.pid?)));
    let guests = median(boxes.iter().filter_map(|bx| host::pss_kib(bx.payload_pid?)));
    let (count, met) = (boxes.len(), met(shims, MAX_PSS_KIB));
    println!("| PSS of a shim, {count} boxes | {shims:.0} KiB | | | {MAX_PSS_KIB} KiB | {met} |");
    println!("| PSS of QEMU | {guests:.0} KiB | | | | |");
}

/// Returns the options of a guest with the agent, on a root file system of busybox.
fn guest(files: &Path, dir: &Path) -> QemuOptions {
    guest_program::install(&dir.join("root"));
    let image = image::build_image(files, dir);
    let mut options = QemuOptions::new(image.kernel());
    options.initrd = Some(image.initrd());
    options.disks.push(Disk::read_only(image.root()));
    options.cmdline = vmm_image::GuestFiles::KERNEL_PARAMETERS.to_owned();
    options.agent = true;
    options
}

/// Returns a box whose guest is ready, and the time that its start took.
async fn boot(runtime: &VmmRuntime, guest: &QemuOptions) -> (BoxInfo, Duration) {
    let spec = BoxSpec::of(guest.to_payload());
    let id = runtime.create(spec).await.expect("a box").id;
    let start = Instant::now();
    let bx = runtime.start(&id).await.expect("a start");
    (bx, start.elapsed())
}

async fn remove(runtime: &VmmRuntime, bx: &BoxInfo) {
    let removed = runtime.remove(&bx.id, Removal::Force).await;
    removed.expect("a removal");
}

fn boot_bare(invocation: &Invocation) -> (BareGuest, Duration) {
    let start = Instant::now();
    let guest = BareGuest::boot(invocation);
    (guest, start.elapsed())
}

async fn run_true(runtime: &VmmRuntime, bx: &BoxInfo) {
    let spec = ExecSpec::new("", TRUE);
    let execution = runtime.exec(bx.id.as_str(), spec).await.expect("a command");
    let ending = execution.wait().await.expect("an ending");
    assert_eq!(ending, Ending::Exited { code: 0 });
}
