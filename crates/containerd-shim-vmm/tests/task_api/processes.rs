//! Starts, signals and ends of processes, and the order of their events.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    PauseRequest, PidsRequest, ShutdownRequest, StateRequest, StatsRequest, Status,
};
use containerd_shim_protos::ttrpc::{Code, context};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::fixture::{TestPod, code, container_spec, eventually, process_spec, timeout};

/// Ends with 7 if its child has not got SIGTERM, else with 8. A process that is stopped keeps a signal pending.
const PARENT: &str = "sleep 1000 & c=$!; kill -STOP $c; \
     trap 'grep -q ^ShdPnd.*4000 /proc/$c/status && exit 8; exit 7' TERM; \
     echo ready >/ready; while :; do sleep 0.1; done";

/// What a request may take that is refused at once. A wait in the guest for a container takes 30 s.
const AT_ONCE: Duration = Duration::from_secs(20);

#[test]
fn a_process_that_is_killed_while_it_starts_does_not_run_on() {
    let Some(pod) = TestPod::start() else { return };
    let (logger, go) = (pod.path("logger"), pod.path("go"));
    let begun = pod.path("begun");
    let script = format!(
        "#!/bin/sh\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec 5>&-\ncat <&3\n",
        begun.display(),
        go.display()
    );
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o700)).unwrap();
    let uri = format!("binary://{}", logger.display());
    pod.create("c", &["sleep", "1000"], &uri);
    thread::scope(|scope| {
        let started = scope.spawn(|| pod.start_process("c", ""));
        eventually("the logging program starts", || begun.exists());
        assert_eq!(code(pod.start_process("c", "")), Code::FAILED_PRECONDITION);
        assert_eq!(code(pod.delete("c", "")), Code::FAILED_PRECONDITION);
        pod.kill("c", 9).unwrap();
        fs::write(&go, "").unwrap();
        started.join().unwrap().unwrap();
    });
    pod.wait_for("exit c 137");
    pod.delete("c", "").unwrap();
    pod.wait_for("delete c 137");
    let events = pod.events();
    let of_c: Vec<_> = events
        .iter()
        .filter(|event| event.contains(" c "))
        .collect();
    assert_eq!(of_c, ["start c 0", "exit c 137", "delete c 137"]);
}

#[test]
fn a_created_container_ends_with_signals_that_end_processes_by_default() {
    let Some(pod) = TestPod::start() else { return };
    let status = |id: &str| {
        let mut request = StateRequest::new();
        request.id = id.to_owned();
        pod.client().state(timeout(), &request).unwrap().status()
    };
    pod.create("c", &["sh", "-c", PARENT], "");
    // SIGCHLD, SIGCONT, SIGWINCH, and the question whether it exists.
    for signal in [0, 17, 18, 28] {
        pod.kill("c", signal).unwrap();
    }
    assert_eq!(code(pod.kill("c", 65)), Code::INVALID_ARGUMENT);
    assert_eq!(status("c"), Status::CREATED);
    pod.create("d", &["sleep", "1000"], "");
    pod.kill("d", 15).unwrap();
    pod.wait_for("exit d 143");
    assert_eq!(code(pod.start_process("d", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(pod.kill("d", 15)), Code::NOT_FOUND);
    assert_eq!(pod.delete("d", "").unwrap().exit_status, 143);
    assert_eq!(pod.count("start d"), 0);

    // One signal, to one process.
    pod.start_process("c", "").unwrap();
    eventually("the signal is trapped", || {
        pod.run_exec("c", &["cat", "/ready"]) == 0
    });
    pod.kill("c", 0).unwrap();
    pod.kill("c", 15).unwrap();
    eventually("the exit", || pod.count("exit c ") == 1);
    assert_eq!(pod.count("exit c 7"), 1, "{:?}", pod.events());
}

#[test]
fn a_create_whose_client_gives_up_leaves_nothing_of_the_container() {
    let Some(pod) = TestPod::start() else { return };
    let spec = container_spec(&["sleep", "1000"]);
    let request = pod.create_request("c", &spec, "");
    // The guest takes longer to boot.
    let timeout = context::with_duration(Duration::from_millis(200));
    pod.client().create(timeout, &request).unwrap_err();
    let count = |dir: &str| fs::read_dir(pod.state().join(dir)).map_or(0, Iterator::count);
    // After the files of the container are written.
    eventually("the guest boots", || count("home/boxes") == 1);
    let files = || fs::read_dir(pod.state().join("files")).unwrap().count();
    eventually("the files are removed", || files() == 0);
    pod.create("d", &["sleep", "1000"], "");
    assert_eq!(count("home/boxes"), 1);
    eventually("the container is created", || pod.count("create") > 0);
    assert_eq!(pod.count("create"), 1, "{:?}", pod.events());
}

#[test]
fn a_container_that_is_being_created_cannot_be_created_again() {
    let Some(pod) = TestPod::start() else { return };
    let mut spec = container_spec(&["sleep", "1000"]);
    let volume = pod.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({
        "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]
    }));
    let request = pod.create_request("c", &spec, "");
    thread::scope(|scope| {
        let created = scope.spawn(|| pod.client().create(timeout(), &request));
        let written = pod.state().join("files/c/container.json");
        // The guest takes longer to boot.
        eventually("the files are written", || written.exists());
        let again = pod.client().create(timeout(), &request);
        assert_eq!(code(again), Code::ALREADY_EXISTS);
        created.join().unwrap().unwrap();
    });
    pod.start_process("c", "").unwrap();
    assert_eq!(pod.run_exec("c", &["cat", "/volume/file"]), 0);
    assert_eq!(pod.count("create"), 1, "{:?}", pod.events());
}

#[test]
fn requests_at_the_same_time_are_carried_out_once() {
    let Some(pod) = TestPod::start() else { return };
    const REQUESTS: usize = 8;
    let all = |request: &(dyn Fn() -> bool + Sync)| {
        thread::scope(|scope| {
            let requests: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(request)).collect();
            let succeeded = requests.into_iter().map(|request| request.join().unwrap());
            succeeded.filter(|succeeded| *succeeded).count()
        })
    };
    pod.run("c", &["sleep", "1000"], "");
    let pause = || {
        let mut request = PauseRequest::new();
        request.id = "c".to_owned();
        pod.client().pause(timeout(), &request).is_ok()
    };
    assert_eq!(all(&pause), 1);
    pod.kill("c", 9).unwrap();
    pod.wait_for("exit c 137");
    assert_eq!(all(&|| pod.delete("c", "").is_ok()), 1);
    pod.wait_for("delete c 137");
    for topic in ["paused", "delete"] {
        assert_eq!(pod.count(topic), 1, "{:?}", pod.events());
    }
}

#[test]
fn a_container_has_a_process_from_its_creation_to_its_deletion() {
    let Some(pod) = TestPod::start() else { return };
    let count = || {
        let mut request = PidsRequest::new();
        request.id = "c".to_owned();
        let response = pod.client().pids(timeout(), &request);
        response.map(|response| response.processes.len())
    };
    pod.create("c", &["sleep", "1000"], "");
    assert_eq!(count().unwrap(), 1);
    pod.start_process("c", "").unwrap();
    pod.exec("c", "e", &["sleep", "1000"]).unwrap();
    assert_eq!(count().unwrap(), 1);
    pod.start_process("c", "e").unwrap();
    assert_eq!(count().unwrap(), 2);
    pod.kill("c", 9).unwrap();
    pod.wait_for("exit c 137");
    assert_eq!(count().unwrap(), 1);
    pod.delete("c", "").unwrap();
    assert_eq!(code(count()), Code::NOT_FOUND);
}

#[test]
fn requests_that_a_container_cannot_carry_out_are_refused_at_once() {
    let Some(pod) = TestPod::start() else { return };
    let stats = |id: &str| {
        let mut request = StatsRequest::new();
        request.id = id.to_owned();
        pod.client().stats(timeout(), &request)
    };
    let pause = |id: &str| {
        let mut request = PauseRequest::new();
        request.id = id.to_owned();
        pod.client().pause(timeout(), &request)
    };
    pod.create("c", &["sleep", "1000"], "");
    let begin = Instant::now();
    pod.exec("c", "early", &["sleep", "1000"]).unwrap();
    let refused = Code::FAILED_PRECONDITION;
    assert_eq!(code(pod.start_process("c", "early")), refused);
    assert_eq!(code(stats("c")), refused);
    assert_eq!(code(pause("c")), refused);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());

    pod.start_process("c", "").unwrap();
    stats("c").unwrap();
    pause("c").unwrap();
    assert_eq!(code(pause("c")), refused);
    assert_eq!(code(pod.exec("c", "paused", &["sleep", "1000"])), refused);
    assert_eq!(code(pod.start_process("c", "early")), refused);
    pod.kill("c", 9).unwrap();
    pod.wait_for("exit c 137");

    let begin = Instant::now();
    assert_eq!(code(pod.exec("c", "late", &["sleep", "1000"])), refused);
    assert_eq!(code(pod.start_process("c", "early")), refused);
    assert_eq!(code(stats("c")), refused);
    assert_eq!(code(pause("c")), refused);
    assert_eq!(code(pod.kill("c", 15)), Code::NOT_FOUND);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
}

#[test]
fn the_containers_of_a_guest_that_hangs_end_with_one_that_is_killed() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sleep", "1000"], "");
    pod.create("d", &["sleep", "1000"], "");
    let qemu = pod.start_process("d", "").unwrap();
    let qemu = Pid::from_raw(qemu.cast_signed()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let start = Instant::now();
    pod.kill("c", 9).unwrap();
    pod.wait_for("exit c 137");
    pod.wait_for("exit d 137");
    // A guest with other containers has more time.
    assert!(
        start.elapsed() > Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    for id in ["c", "d"] {
        assert_eq!(pod.delete(id, "").unwrap().exit_status, 137);
        assert_eq!(pod.count(&format!("exit {id} ")), 1, "{:?}", pod.events());
    }
}

#[test]
fn a_guest_that_cannot_be_configured_is_removed() {
    // The kernel refuses the score, which is above 1000.
    let Some(pod) = TestPod::start_with_oom_score(5000) else {
        return;
    };
    let error = pod.try_create("c", &["sleep", "1000"], "").unwrap_err();
    assert!(error.to_string().contains("oom_score_adj"), "{error}");
    let pods = fs::read_dir(pod.path("pods")).unwrap().flatten();
    let homes: Vec<_> = pods.map(|entry| entry.path().join("home/boxes")).collect();
    assert_eq!(homes.len(), 1);
    assert_eq!(fs::read_dir(&homes[0]).unwrap().count(), 0);
    assert_eq!(pod.processes().len(), 1, "the server");
}

#[test]
fn a_shutdown_reports_the_exits_of_all_processes() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sleep", "1000"], "");
    for number in 0..8 {
        let exec_id = format!("e{number}");
        pod.exec("c", &exec_id, &["sleep", "1000"]).unwrap();
        pod.start_process("c", &exec_id).unwrap();
    }
    // The exit of the container is reported after that of a process which is being started, because its logging program is
    // never ready.
    let (logger, begun) = (pod.path("logger"), pod.path("begun"));
    let script = format!("#!/bin/sh\ntouch {}\nexec sleep 1000\n", begun.display());
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o700)).unwrap();
    let uri = format!("binary://{}", logger.display());
    pod.exec_with_spec("c", "starting", &process_spec(&["sleep", "1000"]), &uri)
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| pod.start_process("c", "starting").unwrap_err());
        eventually("the logging program starts", || begun.exists());
        let mut request = ShutdownRequest::new();
        request.now = true;
        pod.client().shutdown(timeout(), &request).unwrap();
    });
    eventually("the server has ended", || pod.processes().is_empty());
    let events = pod.events();
    for process in ["c", "e0", "e7", "starting"] {
        assert_eq!(pod.count(&format!("exit {process} 137")), 1, "{events:?}");
    }
}
