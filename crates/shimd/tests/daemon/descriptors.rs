use std::fs;
use std::process::{Command, Stdio};

use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, open_log, serve};

#[tokio::test]
async fn daemon_raises_its_descriptor_limit_but_not_that_of_payloads() {
    let home = PerTestBoxHome::new();
    let serve = serve(&home);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -Sn 256 && exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(open_log(&home));
    for (name, _) in serve.get_envs() {
        shell.env_remove(name);
    }
    let daemon = Daemon::spawn(&home, shell).await;
    let [soft, hard] = limits(daemon.pid());
    assert_eq!(soft, hard);

    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let running = daemon.client.start(&made.unwrap().box_id).await.unwrap();
    let of_payload = limits(running.payload_pid.unwrap());
    assert_eq!(of_payload, [hard.min(1024), hard]);
    daemon.shut_down().await;
}

/// Returns the soft and the hard limit of open descriptors.
fn limits(pid: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap().split_whitespace();
    [(); 2].map(|()| numbers.next().unwrap().parse().unwrap())
}
