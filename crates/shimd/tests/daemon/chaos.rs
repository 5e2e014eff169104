//! Many lives of boxes while the daemon is killed again and again. The chaos program of `vmm-runtime`
//! does the same to the runtime, with more operations and a stricter oracle.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};
use vmm_rest::wire::{BoxResponse, BoxStatus, CreateBoxRequest, StopBoxRequest};
use vmm_rest::{Client, ClientError};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::Daemon;
use crate::process::{TEST_TIMEOUT, eventually};

const OPERATORS: usize = 20;
const LIVES_OF_EACH: usize = 12;
/// How often the daemon is killed at least.
const KILLS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn no_end_is_lost_and_nothing_is_left_while_the_daemon_is_killed() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let client = &daemon.client.clone();
    let is_done = AtomicBool::new(false);
    let operators = async {
        let mark = &home.path().display().to_string();
        join_all((0..OPERATORS).map(|operator| async move {
            for life in 0..LIVES_OF_EACH {
                live(client, mark, operator * LIVES_OF_EACH + life).await;
            }
        }))
        .await;
        is_done.store(true, Ordering::Relaxed);
    };
    let kills = async {
        let mut count = 0;
        while count < KILLS || !is_done.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50 + count * 37 % 400)).await;
            daemon.signal(Signal::SIGKILL);
            daemon.wait().await;
            daemon = Daemon::start(&home).await;
            count += 1;
        }
    };
    tokio::join!(operators, kills);
    assert!(daemon.client.all_boxes().await.unwrap().is_empty());
    eventually("all files are gone", async || {
        fs::read_dir(home.path().join("boxes")).unwrap().count() == 0
    })
    .await;
    let metrics = daemon.client.exposition().await.unwrap();
    assert!(metrics.contains("\nvmm_shim_zombies 0\n"), "{metrics}");
    daemon.shut_down().await;
}

/// How the run of a box ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Exit,
    Signal,
    Stop,
}

/// Creates, starts, ends and removes a box. A request whose response is lost may have been executed.
async fn live(client: &Client, mark: &str, number: usize) {
    let name = &*format!("life-{number}");
    let end = [End::Exit, End::Signal, End::Stop][number % 3];
    let code = 1 + i32::try_from(number % 100).unwrap();
    let script = match end {
        End::Exit => format!("sleep 0.0{}; exit {code}", number % 10),
        _ => "exec sleep 60".to_owned(),
    };
    let detached = !number.is_multiple_of(4);
    let request = CreateBoxRequest::of("idle")
        .cmd(["sh", "-c", &script])
        .name(name)
        .detach(detached);
    eventually("the box exists", async || {
        client.create(&request).await.is_ok() || client.exists(name).await.is_ok_and(|it| it)
    })
    .await;

    let started = client.start(name).await;
    if let Err(error) = &started {
        // The daemon was killed.
        let is_interruption = matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Interrupted { .. }
        );
        assert!(is_interruption, "{error:?}");
    }
    if let Ok(started) = started {
        let mut allowed = match end {
            End::Exit => vec![code],
            End::Signal => vec![128 + Signal::SIGUSR1 as i32],
            End::Stop => vec![128 + Signal::SIGTERM as i32],
        };
        if !detached {
            allowed.push(128 + Signal::SIGTERM as i32);
        }
        let ended = match end {
            End::Exit => ended(client, name).await,
            End::Signal => {
                let payload = started.payload_pid.unwrap();
                // The environment is empty during an exec. An attached box ends with its daemon.
                eventually("the payload is signalled or gone", async || {
                    let environment = fs::read(format!("/proc/{payload}/environ"));
                    let Ok(environment) = environment else {
                        return true;
                    };
                    let is_payload = String::from_utf8_lossy(&environment).contains(mark);
                    if is_payload {
                        // It may have ended since.
                        let pid = Pid::from_raw(payload.cast_signed());
                        let _ = signal::kill(pid, Signal::SIGUSR1);
                    }
                    is_payload || has_ended(&inspect(client, name).await)
                })
                .await;
                ended(client, name).await
            }
            End::Stop => {
                eventually("the box is stopped", async || {
                    client.stop(name, &StopBoxRequest::default()).await.is_ok()
                })
                .await;
                ended(client, name).await
            }
        };
        let is_allowed = ended.exit_code.is_some_and(|code| allowed.contains(&code));
        assert!(is_allowed, "{end:?} {ended:?}");
        // It stays the end of the run.
        sleep(Duration::from_millis(20)).await;
        assert_eq!(inspect(client, name).await.exit_code, ended.exit_code);
    }
    eventually("the box is removed", async || {
        client.remove(name, true).await.is_ok() || client.exists(name).await.is_ok_and(|it| !it)
    })
    .await;
}

/// Waits until the run of a box has ended.
async fn ended(client: &Client, name: &str) -> BoxResponse {
    let wait = async {
        loop {
            let bx = inspect(client, name).await;
            if has_ended(&bx) {
                return bx;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.unwrap()
}

fn has_ended(bx: &BoxResponse) -> bool {
    matches!(bx.status, BoxStatus::Stopped | BoxStatus::Failed)
}

/// Returns the state of a box, as soon as a daemon is running.
async fn inspect(client: &Client, name: &str) -> BoxResponse {
    let mut found = None;
    eventually("the daemon shows the box", async || {
        found = client.inspect(name).await.ok();
        found.is_some()
    })
    .await;
    found.unwrap()
}
