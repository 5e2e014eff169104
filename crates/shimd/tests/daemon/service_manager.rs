use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_rest::{BearerToken, Client};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, log, logged, serve, shimd};
use crate::held_reaper::HeldReaper;
use crate::process::{end_of, eventually, kill};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Hears what a service says, as systemd does.
struct ServiceManager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl ServiceManager {
    fn at(home: &PerTestBoxHome, command: &mut Command) -> Self {
        let path = home.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        command.env("NOTIFY_SOCKET", path);
        let heard = Vec::new();
        Self { socket, heard }
    }

    /// How often this was said until now.
    fn count(&mut self, what: &str) -> usize {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
        self.heard.iter().filter(|line| *line == what).count()
    }
}

#[tokio::test]
async fn the_service_manager_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    let mut manager = ServiceManager::at(&home, &mut command);
    let mut daemon = Daemon::spawn(&home, command).await;
    eventually("READY=1", async || manager.count("READY=1") == 1).await;
    assert_eq!(manager.count("STOPPING=1"), 0);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert_eq!(manager.count("STOPPING=1"), 1);
    assert_eq!(manager.count("WATCHDOG=1"), 0, "nobody asked for it");
}

/// A file that nobody else can open until this is dropped, "Leases" in fcntl(2). Python takes the
/// lease: it has a name for that.
struct Held(Child);

const HOLD: &str = "import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()";

impl Held {
    fn open(path: &Path) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", HOLD]).arg(path);
        let piped = python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = piped.spawn().unwrap();
        let mut said = [0; 4];
        holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
        Self(holder)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn catches_sigterm(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & 1 << (Signal::SIGTERM as u32 - 1) != 0
}

#[tokio::test]
async fn a_daemon_that_is_ended_before_it_is_ready_does_not_say_that_it_is() {
    let home = PerTestBoxHome::new();
    let held = Held::open(&home.path().join("lock"));
    let mut command = serve(&home);
    let mut manager = ServiceManager::at(&home, &mut command);
    let mut process = command.spawn().unwrap();
    eventually("it catches signals", async || catches_sigterm(process.id())).await;
    kill(process.id(), Signal::SIGTERM);
    eventually("the signal is heeded", async || {
        logged(&home).contains("shutting down")
    })
    .await;
    drop(held);
    assert!(end_of(&mut process).await.success(), "{}", logged(&home));
    assert_eq!(
        (manager.count("READY=1"), manager.count("STOPPING=1")),
        (0, 1)
    );
}

#[tokio::test]
async fn what_the_daemon_is_told_in_its_environment_is_for_it_alone() {
    let home = PerTestBoxHome::new();
    let path = home.path().join("shimd.sock");
    let mut command = activated(&home, UnixListener::bind(&path).unwrap().into());
    let _manager = ServiceManager::at(&home, &mut command);
    command
        .env("SHIMD_TOKEN", TOKEN)
        .env("WATCHDOG_USEC", "60000000")
        .env("LISTEN_FDNAMES", "shimd.socket");
    let daemon = Daemon::spawn(&home, command).await;
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let id = made.unwrap().box_id;
    let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
    let names = |pid: u32| -> Vec<String> {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let variables = environ.split(|byte| *byte == 0);
        let names = variables.map(|it| it.split(|byte| *byte == b'=').next().unwrap());
        names
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect()
    };
    let (of_daemon, of_shim) = (names(daemon.pid()), names(shim));
    for private in [
        "SHIMD_TOKEN",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    ] {
        assert!(of_daemon.iter().any(|name| name == private), "{private}");
        assert!(of_shim.iter().all(|name| name != private), "{private}");
    }
    assert!(of_shim.iter().any(|name| name == "PATH"), "{of_shim:?}");
    daemon.end().await;
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_reaper_sweeps_and_only_then() {
    const HUNGRY: &str = "the reaper does not sweep";
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.env("WATCHDOG_USEC", "2000000");
    let mut manager = ServiceManager::at(&home, &mut command);
    let daemon = Daemon::spawn(&home, command).await;
    eventually("it is fed", async || manager.count("WATCHDOG=1") >= 2).await;

    let Some(held) = HeldReaper::of(daemon.pid()) else {
        return daemon.end().await;
    };
    let complaints = || logged(&home).matches(HUNGRY).count();
    let before = complaints();
    eventually("the daemon notices", async || complaints() > before).await;
    let fed = manager.count("WATCHDOG=1");
    eventually("time passes", async || complaints() > before + 2).await;
    assert_eq!(manager.count("WATCHDOG=1"), fed);

    drop(held);
    eventually("it is fed again", async || {
        manager.count("WATCHDOG=1") > fed
    })
    .await;
    daemon.end().await;
}

/// `serve` as a service manager starts it that has bound this socket for it.
fn activated(home: &PerTestBoxHome, socket: OwnedFd) -> Command {
    let serve = shimd(home);
    let mut shell = Command::new("sh");
    // The process that becomes the daemon has to be named before it is there.
    shell
        .args(["-c", r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ exec "$@""#])
        .arg("sh")
        .arg(serve.get_program())
        .args(serve.get_args())
        .arg("serve")
        .env("LISTEN_FDS", "1")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(log(home));
    shell
}

#[tokio::test]
async fn a_unix_socket_of_the_service_manager_takes_the_place_of_the_daemons() {
    let home = PerTestBoxHome::new();
    let path = home.path().join("shimd.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let kept = socket.try_clone().unwrap();
    let daemon = Daemon::spawn(&home, activated(&home, socket.into())).await;
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.end().await;
    assert!(path.exists(), "it is the service manager's");

    // Who connects while there is no daemon is answered by the next.
    let client = Client::unix(&path).unwrap();
    let early = tokio::spawn(async move { client.all_boxes().await });
    let daemon = Daemon::spawn(&home, activated(&home, kept.into())).await;
    assert!(early.await.unwrap().unwrap().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn a_tcp_socket_of_the_service_manager_is_served_beside_the_daemons() {
    let home = PerTestBoxHome::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let mut command = activated(&home, socket.into());
    command.env("SHIMD_TOKEN", TOKEN);
    let daemon = Daemon::spawn(&home, command).await;
    let token = BearerToken::new(TOKEN).unwrap();
    let client = Client::tcp(&url, Some(token)).unwrap();
    assert!(client.all_boxes().await.unwrap().is_empty());
    daemon.end().await;
}

#[test]
fn a_socket_that_cannot_be_served_is_told() {
    let home = PerTestBoxHome::new();
    let socket = UnixDatagram::unbound().unwrap();
    let mut command = activated(&home, socket.into());
    let refused = Said::of(command.stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("ListenStream="), "{refused:?}");
}
