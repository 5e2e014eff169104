//! What operators use to supervise boxes: restart policies, logs, waits, prefixes and filters.

use std::io::Read;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, run_shimd, shimd, skip, words};
use crate::process::{eventually, kill, wait_for_exit};

#[tokio::test]
async fn boxes_are_restarted_also_after_a_kill_of_the_daemon() {
    let home = PerTestBoxHome::new();
    let mut killed = Daemon::start(&home).await;
    let run = [
        "run",
        "-d",
        "--restart",
        "unless-stopped",
        "--name",
        "web",
        "idle",
    ];
    run_shimd(&home, &run).out();
    let first = killed.client.inspect("web").await.unwrap().pid.unwrap();
    kill(first, Signal::SIGKILL);
    eventually("the box is restarted", async || {
        let bx = killed.client.inspect("web").await.unwrap();
        bx.status == BoxStatus::Running && bx.pid.is_some_and(|pid| pid != first)
    })
    .await;
    let shown = run_shimd(&home, &["inspect", "web", "--format", "json"]).json();
    assert_eq!(shown[0]["restart_policy"], "unless-stopped");
    assert_eq!(
        (&shown[0]["restarts"], &shown[0]["restarting"]),
        (&1.into(), &false.into())
    );
    let looping = [
        "create",
        "--restart",
        "on-failure:9",
        "--name",
        "looping",
        "idle",
        "false",
    ];
    run_shimd(&home, &looping).out();
    run_shimd(&home, &["start", "looping"]).out();
    eventually("ps shows that the box waits for its restart", async || {
        let listed = run_shimd(&home, &["ps"]).out();
        listed.contains("failed (1), restarting")
    })
    .await;
    let restarts = killed.client.inspect("looping").await.unwrap().restarts;
    killed.signal(Signal::SIGKILL);
    killed.wait().await;

    let daemon = Daemon::start(&home).await;
    daemon.wait_until("web", BoxStatus::Running).await;
    eventually("the daemon has restarted the other box", async || {
        let bx = daemon.client.inspect("looping").await.unwrap();
        bx.restarts > restarts.max(3)
    })
    .await;
    run_shimd(&home, &["rm", "--all", "--force"]).out();
    assert_eq!(run_shimd(&home, &["ps", "-aq"]).out(), "");
    let refused = run_shimd(&home, &["create", "--restart", "sometimes", "idle"]);
    assert!(refused.err.contains("on-failure[:max]"), "{refused:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn logs_prints_the_output_of_a_box_and_follows_it_to_its_end() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let script = "seq 5; while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; echo end";
    let run = ["run", "-d", "--name", "talker", "idle", "sh", "-c", script];
    let id = run_shimd(&home, &run).out();
    eventually("the box has printed", async || {
        run_shimd(&home, &["logs", "talker"]).out() == "1\n2\n3\n4\n5\n"
    })
    .await;
    assert_eq!(
        run_shimd(&home, &["logs", "--tail", "2", "talker"]).out(),
        "4\n5\n"
    );
    let mut follower = shimd(&home);
    follower.args(["logs", "-f", "-n", "1", "talker"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    follower
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"5\n");
    let waiter = shimd(&home)
        .args(["wait", "talker"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let go = home.path().join("boxes").join(id.trim()).join("go");
    std::fs::write(go, "").unwrap();
    let wait_for = |child: std::process::Child| {
        tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
    };
    let followed = wait_for(follower).await.unwrap();
    assert_eq!(String::from_utf8(followed.stdout).unwrap(), "end\n");
    assert_eq!(wait_for(waiter).await.unwrap().stdout, b"0\n");
    // The box has ended already.
    assert_eq!(
        run_shimd(&home, &["logs", "-f", "-n1", "talker"]).out(),
        "end\n"
    );
    assert_eq!(run_shimd(&home, &["wait", "talker"]).out(), "0\n");
    let refused = run_shimd(&home, &["logs", "nope"]);
    assert!(
        refused.code == 1 && refused.err.contains("not found"),
        "{refused:?}"
    );
    daemon.shut_down().await;
}

#[tokio::test]
async fn wait_lasts_through_a_start_to_the_end_of_the_run() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let image = r#"{"ready": "notified", "command": ["sh", "-c", "
        until [ -e $VMM_BOX_DIR/start ]; do sleep 0.01; done
        python3 -c \"import os, socket
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\"
        until [ -e $VMM_BOX_DIR/end ]; do sleep 0.01; done
        exit 7"]}"#;
    let image = image.replace("\n        ", "\\n");
    std::fs::write(images.path().join("slow.json"), image).unwrap();
    let mut command = crate::fixture::serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    run_shimd(&home, &["run", "--name", "ended", "idle", "true"]).out();
    let id = run_shimd(&home, &["create", "--name", "slow", "slow"]).out();
    let mut start = shimd(&home)
        .args(["start", "slow"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the box is starting", async || {
        daemon.client.inspect("slow").await.unwrap().starting
    })
    .await;
    let mut waiter = shimd(&home)
        .args(["wait", "ended", "slow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    let output = waiter.stdout.as_mut().unwrap();
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"0\n");
    let dir = home.path().join("boxes").join(id.trim());
    std::fs::write(dir.join("start"), "").unwrap();
    assert!(wait_for_exit(&mut start).await.success());
    std::fs::write(dir.join("end"), "").unwrap();
    assert!(wait_for_exit(&mut waiter).await.success());
    let mut second = String::new();
    let mut output = waiter.stdout.unwrap();
    output.read_to_string(&mut second).unwrap();
    assert_eq!(second, "7\n");
    daemon.shut_down().await;
}

#[tokio::test]
async fn wait_prints_the_exit_code_of_a_box_that_is_removed_while_it_waits_for_another() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    run_shimd(&home, &["run", "--name", "ended", "idle", "true"]).out();
    let start = |args: &[&str], code: u8| {
        let script = format!("until [ -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit {code}");
        let run = ["run", "-d"].iter().chain(args);
        let run: Vec<_> = run.copied().chain(["idle", "sh", "-c", &script]).collect();
        let id = run_shimd(&home, &run).out();
        home.path().join("boxes").join(id.trim())
    };
    let long = start(&["--name", "long"], 3);
    let short = start(&["--rm", "--name", "short"], 7);
    let mut waiter = shimd(&home)
        .args(["wait", "ended", "long", "short"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has read the states of all.
    let mut first = [0; 2];
    let output = waiter.stdout.as_mut().unwrap();
    output.read_exact(&mut first).unwrap();
    std::fs::write(short.join("go"), "").unwrap();
    eventually("the box is removed", async || {
        daemon.client.inspect("short").await.is_err()
    })
    .await;
    std::fs::write(long.join("go"), "").unwrap();
    assert!(wait_for_exit(&mut waiter).await.success());
    let mut rest = String::new();
    let mut output = waiter.stdout.unwrap();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "3\n7\n");
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_unique_prefix_of_an_id_is_enough() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = run_shimd(&home, &["create", "idle"]).out();
    let inspect = |wanted: String| run_shimd(&home, &["inspect", "--format", "json", &wanted]);
    assert_eq!(inspect(id[..4].to_owned()).json()[0]["box_id"], id.trim());
    run_shimd(&home, &["create", "--name", &id[..5], "idle"]).out();
    let ambiguous = inspect(id[..4].to_owned());
    assert!(ambiguous.err.contains("several boxes"), "{ambiguous:?}");
    // A name wins.
    assert_eq!(inspect(id[..5].to_owned()).json()[0]["name"], id[..5]);
    assert!(inspect(format!("{}x", id.trim())).err.contains("not found"));
    daemon.shut_down().await;
}

#[tokio::test]
async fn ps_and_rm_select_boxes_by_filters() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for name in ["web-1", "web-2", "db"] {
        daemon
            .client
            .create(&CreateBoxRequest::of("idle").name(name))
            .await
            .unwrap();
    }
    daemon.client.start("web-2").await.unwrap();
    let list = |args: &[&str]| {
        let out = run_shimd(&home, &[&["ps", "-q"], args].concat()).out();
        words(&out).len()
    };
    assert_eq!((list(&[]), list(&["-a"])), (1, 3));
    assert_eq!(list(&["-a", "--filter", "name=web"]), 2);
    assert_eq!(
        list(&["--filter", "status=configured", "-f", "name=web"]),
        1
    );
    let removed = [
        "rm",
        "--filter",
        "name=web",
        "--filter",
        "status=configured",
    ];
    assert_eq!(words(&run_shimd(&home, &removed).out()).len(), 1);
    assert_eq!(list(&["-a"]), 2);
    let removed = run_shimd(&home, &["rm", "--all"]);
    assert!(
        removed.code == 1 && removed.err.contains("is running"),
        "{removed:?}"
    );
    assert_eq!(list(&["-a"]), 1);
    assert_eq!(run_shimd(&home, &["rm", "--all", "web-2"]).code, 125);
    run_shimd(&home, &["rm", "--all", "--force"]).out();
    assert_eq!(list(&["-a"]), 0);
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_detached_run_with_rm_removes_the_box_when_it_has_ended() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let id = run_shimd(&home, &["run", "-d", "--rm", "idle"]).out();
    run_shimd(&home, &["stop", id.trim()]).out();
    eventually("the box is removed", async || {
        !daemon.client.exists(id.trim()).await.unwrap()
    })
    .await;
    daemon.shut_down().await;
}

#[tokio::test]
async fn idempotency_keys_survive_a_kill_of_the_daemon() {
    let home = PerTestBoxHome::new();
    let mut killed = Daemon::start(&home).await;
    let request = CreateBoxRequest::of("idle");
    let key = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let first = killed.client.create_once(&request, key).await.unwrap();
    killed.signal(Signal::SIGKILL);
    killed.wait().await;
    let daemon = Daemon::start(&home).await;
    let again = daemon.client.create_once(&request, key).await.unwrap();
    assert_eq!(again.box_id, first.box_id);
    let other = CreateBoxRequest::of("idle").name("other");
    let refused = daemon.client.create_once(&other, key).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(daemon.client.all_boxes().await.unwrap().len(), 1);
    daemon.shut_down().await;
}

/// Mounts a tmpfs with the options `$1` on `$0`, fills it with the command `$2`, and runs the rest.
const ON_FULL_DISK: &str = "
    mount -t tmpfs -o mode=0700,$1 none \"$0\" || exit 77
    cd \"$0\" && eval \"$2\" 2>/dev/null
    shift 2 && exec timeout 60 \"$@\"";

#[test]
fn daemon_does_not_start_on_a_full_disk() {
    for (limit, fill, cause) in [
        ("size=20m", "head -c 30m /dev/zero >filler", "MiB are free"),
        (
            "nr_inodes=1100",
            "for i in $(seq 1100); do ln -s . $i; done",
            "inodes are free",
        ),
    ] {
        let home = PerTestBoxHome::new();
        let mut serve = shimd(&home);
        serve.arg("serve");
        // Only the daemon sees the mount.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", ON_FULL_DISK])
            .arg(home.path())
            .args([limit, fill])
            .arg(serve.get_program())
            .args(serve.get_args());
        for (name, _) in serve.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        let refused = CommandOutput::of(&mut command);
        if refused.code == 77 || refused.err.starts_with("unshare:") {
            return skip(&refused.err);
        }
        assert_eq!(refused.code, 1, "{refused:?}");
        for part in ["is full", cause] {
            assert!(refused.err.contains(part), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn daemon_starts_without_a_reserve_of_the_disk() {
    let home = PerTestBoxHome::new();
    let mut command = crate::fixture::serve(&home);
    command.args(["--disk-reserve", "0"]);
    Daemon::spawn(&home, command).await.shut_down().await;
}

#[tokio::test]
async fn start_and_inspect_show_why_a_start_failed() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let image = r#"{"command": ["sh", "-c", "echo no such key; exit 3"], "ready": "notified"}"#;
    std::fs::write(images.path().join("broken.json"), image).unwrap();
    let mut command = crate::fixture::serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    run_shimd(&home, &["create", "--name", "web", "broken"]).out();
    let refused = run_shimd(&home, &["start", "web"]);
    assert_eq!(refused.code, 1);
    for part in ["exited with code 3", "no such key"] {
        assert!(refused.err.contains(part), "{refused:?}");
    }
    let table = run_shimd(&home, &["inspect", "web"]).out();
    let fields: Vec<_> = table.lines().map(crate::fixture::words).collect();
    assert!(fields.contains(&vec!["exit_code", "3"]), "{table}");
    let output = vec!["last_output", "no", "such", "key"];
    assert!(fields.contains(&output), "{table}");
    daemon.shut_down().await;
}
