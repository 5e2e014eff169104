use std::fs;
use std::process::{Command, Stdio};

use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, log, serve};

#[tokio::test]
async fn the_daemon_has_as_many_descriptors_as_it_may_and_a_payload_as_usual() {
    let home = PerTestBoxHome::new();
    let serve = serve(&home);
    let mut poor = Command::new("sh");
    poor.args(["-c", "ulimit -Sn 256 && exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log(&home));
    for (name, _) in serve.get_envs() {
        poor.env_remove(name);
    }
    let daemon = Daemon::spawn(&home, poor).await;
    let [soft, hard] = limits(daemon.pid());
    assert_eq!(soft, hard);

    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let running = daemon.client.start(&made.unwrap().box_id).await.unwrap();
    let of_payload = limits(running.payload_pid.unwrap());
    assert_eq!(of_payload, [hard.min(1024), hard]);
    daemon.end().await;
}

/// Of descriptors: soft, and hard.
fn limits(pid: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap().split_whitespace();
    [(); 2].map(|()| numbers.next().unwrap().parse().unwrap())
}
