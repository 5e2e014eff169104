//! The same payload under other supervisors, where they are installed: crun and runc, which leave no
//! process beside the payload, conmon with crun, and containerd (`ctr`) with runc.

use std::fs;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shim_reaper::{Command, ShimReaper, Stdio};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use vmm_protocol::procfs;
use vmm_runtime::{BoxSpec, Removal, RuntimeOptions, ShimProgram, VmmRuntime};

use super::host::pss_kib;
use super::{BOXES, median};

const STARTS: usize = 30;

/// The namespaces of the container: few, because a box has none. Each has its own `/dev`, in which runc
/// creates links: in that of the bundle, concurrent starts would collide.
const CONFIG: &str = r#"{
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0}, "args": ["/payload", "idle"], "env": [], "cwd": "/"
    },
    "root": {"path": "ROOTFS", "readonly": true},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
    ],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
}"#;

/// A supervisor. Commands are lines of words, in which ID is the name of the container and DIR the
/// directory of all bundles.
struct Peer {
    name: &'static str,
    /// Fails if the peer is not installed.
    check: &'static str,
    start: &'static [&'static str],
    remove: &'static [&'static str],
    /// The name of the process that remains beside each payload.
    supervisor: Option<&'static str>,
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "crun",
        check: "crun --version",
        start: &["crun --cgroup-manager=disabled --root DIR/crun run --detach --bundle DIR/ID ID"],
        remove: &["crun --cgroup-manager=disabled --root DIR/crun delete --force ID"],
        supervisor: None,
    },
    Peer {
        name: "runc",
        check: "runc --version",
        start: &["runc --root DIR/runc run --detach --bundle DIR/ID ID"],
        remove: &["runc --root DIR/runc delete --force ID"],
        supervisor: None,
    },
    Peer {
        name: "conmon, crun",
        check: "conmon --version",
        start: &[
            "_OCI_SYNCPIPE=3 conmon --api-version 1 -c ID -u ID -r /usr/bin/crun -b DIR/ID -p DIR/ID/pid \
             -l k8s-file:DIR/ID/log --exit-dir DIR/exits --socket-dir-path DIR/sockets --runtime-arg \
             --cgroup-manager=disabled --runtime-arg --root --runtime-arg DIR/conmon",
            "crun --cgroup-manager=disabled --root DIR/conmon start ID",
        ],
        remove: &["crun --cgroup-manager=disabled --root DIR/conmon delete --force ID"],
        supervisor: Some("conmon"),
    },
    Peer {
        name: "containerd, runc",
        check: "ctr version",
        start: &["ctr run --detach --rootfs DIR/rootfs ID /payload idle"],
        remove: &["ctr task delete --force ID", "ctr container delete ID"],
        supervisor: Some("containerd-shim"),
    },
];

/// Prints the table of the supervisors, with `payload` as payload and shim program.
pub async fn print_table(payload: &Path) {
    println!(
        "\n| {STARTS} starts, {BOXES} at once | start | {BOXES} at once | remove | PSS of the \
         supervisor |\n|---|---|---|---|---|"
    );
    for warm in [0, 2] {
        let home = TempDir::new().expect("a home");
        let shim = ShimProgram::at(payload).expect("a shim program");
        let options = RuntimeOptions::new(home.path()).shim_program(shim);
        let runtime = VmmRuntime::open(options.warm_shims(warm)).await;
        let runtime = runtime.expect("a runtime");
        measure_boxes(&runtime, payload, warm).await;
        runtime.shutdown(Duration::from_secs(10)).await;
    }
    for peer in &PEERS {
        match run(Path::new("/"), "", &[peer.check]).await {
            Ok(()) => {
                if let Err(error) = measure_peer(peer, payload).await {
                    println!("| {} | fails here: {error} | | | |", peer.name);
                }
            }
            Err(_) => println!("| {} | not available here | | | |", peer.name),
        }
    }
}

async fn measure_boxes(runtime: &VmmRuntime, payload: &Path, warm: usize) {
    let payload = payload.to_string_lossy();
    let start = async || {
        let spec = BoxSpec::new([&*payload, "idle"]);
        let id = runtime.create(spec).await.expect("a box").id;
        runtime.start(&id).await.expect("a start")
    };
    let (mut starts, mut removals) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        while runtime.metrics().await.warm_shims < warm as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begin = Instant::now();
        let id = start().await.id;
        starts.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        runtime
            .remove(&id, Removal::Force)
            .await
            .expect("a removal");
        removals.push(begin.elapsed().as_secs_f64());
    }
    let begin = Instant::now();
    let boxes = join_all((0..BOXES).map(|_| start())).await;
    let at_once = begin.elapsed().as_secs_f64();
    let pss = boxes.iter().filter_map(|bx| pss_kib(bx.pid?));
    let pss = median(pss);
    join_all(
        boxes
            .iter()
            .map(|bx| runtime.remove(&bx.id, Removal::Force)),
    )
    .await;
    let name = if warm > 0 { "box, warm shims" } else { "box" };
    print_row(name, starts, at_once, removals, Some(pss));
}

async fn measure_peer(peer: &Peer, payload: &Path) -> Result<(), String> {
    let dir = TempDir::new().map_err(|error| error.to_string())?;
    let name = |number| format!("bench-{number}");
    let singles: Vec<_> = (0..STARTS).map(name).collect();
    let at_once: Vec<_> = (STARTS..STARTS + BOXES).map(name).collect();
    prepare(dir.path(), payload, singles.iter().chain(&at_once))
        .map_err(|error| error.to_string())?;
    let (mut starts, mut removals) = (Vec::new(), Vec::new());
    for id in &singles {
        let begin = Instant::now();
        run(dir.path(), id, peer.start).await?;
        starts.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        run(dir.path(), id, peer.remove).await?;
        removals.push(begin.elapsed().as_secs_f64());
    }
    let begin = Instant::now();
    let started = join_all(at_once.iter().map(|id| run(dir.path(), id, peer.start))).await;
    let duration = begin.elapsed().as_secs_f64();
    let pss = peer.supervisor.map(|name| median(pss_of(name).into_iter()));
    for id in &at_once {
        let _ = run(dir.path(), id, peer.remove).await;
    }
    started.into_iter().collect::<Result<(), _>>()?;
    print_row(peer.name, starts, duration, removals, pss);
    Ok(())
}

fn print_row(name: &str, starts: Vec<f64>, at_once: f64, removals: Vec<f64>, pss: Option<f64>) {
    let [start, removal] = [starts, removals].map(|times| median(times.into_iter()) * 1e3);
    let pss = pss.map_or("none".to_owned(), |pss| format!("{pss:.0} KiB"));
    let at_once = at_once * 1e3;
    println!("| {name} | {start:.2} ms | {at_once:.0} ms | {removal:.2} ms | {pss} |");
}

/// Creates the root file system, and a bundle for each container.
fn prepare<'a>(
    dir: &Path,
    payload: &Path,
    ids: impl Iterator<Item = &'a String>,
) -> io::Result<()> {
    let rootfs = dir.join("rootfs");
    for dir in ["rootfs/proc", "rootfs/dev", "exits", "sockets"].map(|name| dir.join(name)) {
        fs::create_dir_all(dir)?;
    }
    fs::copy(payload, rootfs.join("payload"))?;
    let config = CONFIG.replace("ROOTFS", &rootfs.to_string_lossy());
    for bundle in ids.map(|id| dir.join(id)) {
        fs::create_dir(&bundle)?;
        fs::write(bundle.join("config.json"), &config)?;
    }
    Ok(())
}

/// Runs commands one after the other.
async fn run(dir: &Path, id: &str, lines: &[&str]) -> Result<(), String> {
    for line in lines {
        let words = line.split_ascii_whitespace().map(|word| {
            word.replace("DIR", &dir.to_string_lossy())
                .replace("ID", id)
        });
        let words: Vec<_> = words.collect();
        run_command(&words)
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

static REAPER: LazyLock<ShimReaper> = LazyLock::new(ShimReaper::start);

/// The first word of a command that responds on this pipe once it has created its container, conmon(8).
const SYNC_PIPE: (&str, &str) = ("_OCI_SYNCPIPE", "3");

async fn run_command(words: &[String]) -> io::Result<()> {
    let (name, value) = SYNC_PIPE;
    let (responds, words) = match words {
        [first, words @ ..] if *first == format!("{name}={value}") => (true, words),
        words => (false, words),
    };
    let [program, args @ ..] = words else {
        return Err(io::Error::other("an empty command"));
    };
    // A file, because a pipe would stay open as long as the payload runs.
    let mut messages = tempfile::tempfile()?;
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(messages.try_clone()?);
    let (sender, receiver) = pipe::pipe()?;
    if responds {
        command.env(name, value).fd(3, sender.into_blocking_fd()?);
    }
    let exit = REAPER
        .spawn(&mut command)?
        .await
        .map_err(io::Error::other)?;
    drop(command);
    let mut response = String::new();
    if responds {
        BufReader::new(receiver).read_line(&mut response).await?;
    }
    let is_created = !responds || !response.is_empty() && !response.contains("-1");
    if is_created && exit.status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut text = response;
    messages.rewind()?;
    messages.read_to_string(&mut text)?;
    let status = exit
        .status
        .map_or("unknown status".to_owned(), |status| status.to_string());
    let text = text.trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {status}: {text}")))
}

/// Returns the PSS of all processes with this name, in KiB.
fn pss_of(name: &str) -> Vec<f64> {
    let named = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name
    };
    let pids = procfs::pids().into_iter().flatten();
    pids.filter(named).filter_map(pss_kib).collect()
}
