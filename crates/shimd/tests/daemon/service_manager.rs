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

use crate::fixture::{CommandOutput, Daemon, open_log, read_log, serve, shimd};
use crate::paused_reaper::PausedReaper;
use crate::process::{eventually, kill, wait_for_exit};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Receives the notifications of a service, as systemd does.
struct ServiceManager {
    socket: UnixDatagram,
    received: Vec<String>,
}

impl ServiceManager {
    fn listen(home: &PerTestBoxHome, command: &mut Command) -> Self {
        let path = home.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        command.env("NOTIFY_SOCKET", path);
        let received = Vec::new();
        Self { socket, received }
    }

    /// Returns how often a notification was received.
    fn count(&mut self, notification: &str) -> usize {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            self.received.extend(text.lines().map(str::to_owned));
        }
        self.received
            .iter()
            .filter(|line| *line == notification)
            .count()
    }
}

#[tokio::test]
async fn daemon_notifies_when_it_is_ready_and_when_it_stops() {
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    let mut manager = ServiceManager::listen(&home, &mut command);
    let mut daemon = Daemon::spawn(&home, command).await;
    eventually("READY=1", async || manager.count("READY=1") == 1).await;
    assert_eq!(manager.count("STOPPING=1"), 0);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().await.success());
    assert_eq!(manager.count("STOPPING=1"), 1);
    assert_eq!(manager.count("WATCHDOG=1"), 0, "the watchdog is disabled");
}

/// A write lease on a file, fcntl(2), which blocks every other open of the file until it is dropped.
/// A Python process takes it, because nix has no lease.
struct FileLease(Child);

const TAKE_LEASE: &str = "import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('done', flush=True)
sys.stdin.read()";

impl FileLease {
    fn take(path: &Path) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", TAKE_LEASE]).arg(path);
        let piped = python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = piped.spawn().unwrap();
        let mut line = [0; 4];
        holder.stdout.take().unwrap().read_exact(&mut line).unwrap();
        Self(holder)
    }
}

impl Drop for FileLease {
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
async fn daemon_that_is_stopped_while_starting_does_not_report_ready() {
    let home = PerTestBoxHome::new();
    let lease = FileLease::take(&home.path().join("lock"));
    let mut command = serve(&home);
    let mut manager = ServiceManager::listen(&home, &mut command);
    let mut process = command.spawn().unwrap();
    eventually("the daemon catches SIGTERM", async || {
        catches_sigterm(process.id())
    })
    .await;
    kill(process.id(), Signal::SIGTERM);
    eventually("the daemon handles the signal", async || {
        read_log(&home).contains("shutting down")
    })
    .await;
    drop(lease);
    assert!(
        wait_for_exit(&mut process).await.success(),
        "{}",
        read_log(&home)
    );
    assert_eq!(
        (manager.count("READY=1"), manager.count("STOPPING=1")),
        (0, 1)
    );
}

#[tokio::test]
async fn private_variables_of_the_daemon_are_not_passed_to_shims() {
    let home = PerTestBoxHome::new();
    let path = home.path().join("shimd.sock");
    let mut command = serve_with_socket(&home, UnixListener::bind(&path).unwrap().into());
    let _manager = ServiceManager::listen(&home, &mut command);
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
    daemon.shut_down().await;
}

#[tokio::test]
async fn watchdog_is_fed_only_while_the_reaper_sweeps() {
    const NOT_FED: &str = "the reaper does not sweep";
    let home = PerTestBoxHome::new();
    let mut command = serve(&home);
    command.env("WATCHDOG_USEC", "2000000");
    let mut manager = ServiceManager::listen(&home, &mut command);
    let daemon = Daemon::spawn(&home, command).await;
    eventually("the watchdog is fed", async || {
        manager.count("WATCHDOG=1") >= 2
    })
    .await;

    let Some(paused) = PausedReaper::pause(daemon.pid()) else {
        return daemon.shut_down().await;
    };
    let warnings = || read_log(&home).matches(NOT_FED).count();
    let before = warnings();
    eventually("the daemon logs a warning", async || warnings() > before).await;
    let fed = manager.count("WATCHDOG=1");
    eventually("the daemon logs more warnings", async || {
        warnings() > before + 2
    })
    .await;
    assert_eq!(manager.count("WATCHDOG=1"), fed);

    drop(paused);
    eventually("the watchdog is fed again", async || {
        manager.count("WATCHDOG=1") > fed
    })
    .await;
    daemon.shut_down().await;
}

/// Returns the command `serve` with an inherited socket, as a service manager runs it.
fn serve_with_socket(home: &PerTestBoxHome, socket: OwnedFd) -> Command {
    let serve = shimd(home);
    let mut shell = Command::new("sh");
    // LISTEN_PID must be the pid of the daemon, which the shell becomes.
    shell
        .args(["-c", r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ exec "$@""#])
        .arg("sh")
        .arg(serve.get_program())
        .args(serve.get_args())
        .arg("serve")
        .env("LISTEN_FDS", "1")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(open_log(home));
    shell
}

#[tokio::test]
async fn inherited_unix_socket_replaces_the_socket_in_the_home() {
    let home = PerTestBoxHome::new();
    let path = home.path().join("shimd.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let kept = socket.try_clone().unwrap();
    let daemon = Daemon::spawn(&home, serve_with_socket(&home, socket.into())).await;
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    daemon.shut_down().await;
    assert!(path.exists(), "the socket belongs to the service manager");

    // The next daemon serves a client that connects before it starts.
    let client = Client::unix(&path).unwrap();
    let early = tokio::spawn(async move { client.all_boxes().await });
    let daemon = Daemon::spawn(&home, serve_with_socket(&home, kept.into())).await;
    assert!(early.await.unwrap().unwrap().is_empty());
    daemon.shut_down().await;
}

#[tokio::test]
async fn inherited_tcp_socket_is_served_beside_the_socket_in_the_home() {
    let home = PerTestBoxHome::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let mut command = serve_with_socket(&home, socket.into());
    command.env("SHIMD_TOKEN", TOKEN);
    let daemon = Daemon::spawn(&home, command).await;
    let token = BearerToken::new(TOKEN).unwrap();
    let client = Client::tcp(&url, Some(token)).unwrap();
    assert!(client.all_boxes().await.unwrap().is_empty());
    daemon.shut_down().await;
}

#[test]
fn inherited_datagram_socket_is_refused() {
    let home = PerTestBoxHome::new();
    let socket = UnixDatagram::unbound().unwrap();
    let mut command = serve_with_socket(&home, socket.into());
    let refused = CommandOutput::of(command.stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("ListenStream="), "{refused:?}");
}
