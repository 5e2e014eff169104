//! With `ReaperBuilder::subreaper`, the reaper also reaps the orphans of the whole process.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::forks::{IdleChildren, exiting_child, fork_child, idle_child};
use common::own_process::{block_on, in_own_process};
use common::{
    DEADLINE, Fixture, as_pid, eventually, eventually_blocking, is_gone, is_zombie, kill, state_of,
};
use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ReaperBuilder, ShimReaper};

/// A reaper that sweeps often.
fn subreaper() -> ReaperBuilder {
    ShimReaper::builder()
        .sweep_interval(Duration::from_millis(20))
        .subreaper(true)
}

/// Runs a test in a process of its own.
fn run(test: &str, body: impl Future<Output = ()>) {
    in_own_process(test, || block_on(body));
}

/// Makes `count` orphans that exit at once, and waits until they are children of this process.
fn make_orphans(count: usize) {
    let parent = fork_child(|| {
        for _ in 0..count {
            fork_child(|| ());
        }
    });
    waitpid(as_pid(parent), None).unwrap();
}

/// Makes an orphan that runs until it is killed, and returns its pid.
fn make_idle_orphan() -> u32 {
    let before = children();
    let parent = fork_child(|| {
        idle_child();
    });
    waitpid(as_pid(parent), None).unwrap();
    let is_new = |pid: &u32| !before.contains(pid);
    children().into_iter().find(is_new).unwrap()
}

/// Forks on a thread that exits. The children become those of the main thread, as orphans do.
fn like_orphans<T: Send + 'static>(fork: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(fork).join().unwrap()
}

/// Returns the children of all threads of this process.
fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")));
    let lists: Vec<String> = lists.map(Result::unwrap_or_default).collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.map(|pid| pid.parse().unwrap()).collect()
}

fn orphans_reaped(fixture: &Fixture) -> u64 {
    fixture.reaper.stats().orphans_reaped_total
}

#[test]
fn an_orphan_is_reaped_after_its_end() {
    run("an_orphan_is_reaped_after_its_end", async {
        for pidfd in [true, false] {
            let fixture = Fixture::new(subreaper().pidfd(pidfd));
            assert_eq!(get_child_subreaper(), Ok(true));
            let orphan = make_idle_orphan();
            fixture.sweeps(3).await;
            assert!(state_of(orphan).is_some(), "a running orphan is left alone");
            kill(orphan, SIGKILL);
            eventually("the orphan is reaped", || is_gone(orphan)).await;
            eventually("it is counted", || orphans_reaped(&fixture) == 1).await;
            fixture.expect(0, 0, 0).await;
        }
    });
}

#[test]
fn thousands_of_orphans_leave_no_zombie() {
    run("thousands_of_orphans_leave_no_zombie", async {
        let fixture = Fixture::new(subreaper());
        make_orphans(2000);
        eventually("all are reaped", || children().is_empty()).await;
        eventually("all are counted", || orphans_reaped(&fixture) == 2000).await;
    });
}

#[test]
fn the_owner_of_a_child_gets_its_status_in_the_grace_period() {
    run(
        "the_owner_of_a_child_gets_its_status_in_the_grace_period",
        async {
            let fixture = Fixture::new(subreaper().owner_grace(2 * DEADLINE));
            let child = like_orphans(|| exiting_child(7));
            eventually("the child exits", || is_zombie(child)).await;
            fixture.sweeps(5).await;
            let status = waitpid(as_pid(child), None);
            assert_eq!(status, Ok(WaitStatus::Exited(as_pid(child), 7)));
            fixture.sweeps(5).await;
            assert_eq!(orphans_reaped(&fixture), 0);
        },
    );
}

#[test]
fn the_zombie_of_a_registered_child_is_not_an_orphan() {
    run("the_zombie_of_a_registered_child_is_not_an_orphan", async {
        let fixture = Fixture::new(subreaper().owner_grace(Duration::from_millis(100)));
        let child = like_orphans(|| exiting_child(7));
        let exit = fixture.reaper.register(child).unwrap().await.unwrap();
        assert_eq!(exit.code(), Some(7));
        fixture.expect(1, 0, 0).await;
        assert_eq!(orphans_reaped(&fixture), 0);
    });
}

#[test]
fn the_zombie_of_another_thread_is_left_and_hides_no_orphan() {
    run(
        "the_zombie_of_another_thread_is_left_and_hides_no_orphan",
        async {
            let fixture = Fixture::new(subreaper());
            let (ended, end) = mpsc::channel::<()>();
            let (sender, receiver) = mpsc::channel();
            let owner = thread::spawn(move || {
                let child = exiting_child(9);
                sender.send(child).unwrap();
                end.recv().unwrap_err();
                waitpid(as_pid(child), None)
            });
            let held = receiver.recv().unwrap();
            eventually_blocking("the child exits", || is_zombie(held));
            make_orphans(10);
            eventually("the orphans are reaped", || children() == [held]).await;
            fixture.sweeps(5).await;
            assert!(is_zombie(held));
            assert_eq!(orphans_reaped(&fixture), 10);
            drop(ended);
            let status = owner.join().unwrap();
            assert_eq!(status, Ok(WaitStatus::Exited(as_pid(held), 9)));
        },
    );
}

#[test]
fn an_orphan_is_found_behind_many_running_children() {
    run("an_orphan_is_found_behind_many_running_children", async {
        // On each side of the orphan more than a sweep checks.
        set_child_subreaper(true).unwrap();
        let _before = like_orphans(|| IdleChildren::fork(700));
        let orphan = make_idle_orphan();
        let _behind = like_orphans(|| IdleChildren::fork(700));
        let fixture = Fixture::new(subreaper());
        kill(orphan, SIGKILL);
        eventually("the orphan is reaped", || is_gone(orphan)).await;
        eventually("it is counted", || orphans_reaped(&fixture) == 1).await;
    });
}

#[test]
fn orphans_are_reaped_without_the_tokio_runtime_and_without_any_call() {
    in_own_process(
        "orphans_are_reaped_without_the_tokio_runtime_and_without_any_call",
        || {
            let fixture = block_on(async { Fixture::new(subreaper()) });
            let orphan = make_idle_orphan();
            kill(orphan, SIGKILL);
            eventually_blocking("the orphan is reaped", || is_gone(orphan));
            eventually_blocking("it is counted", || orphans_reaped(&fixture) == 1);
        },
    );
}

#[test]
fn without_the_option_orphans_stay() {
    run("without_the_option_orphans_stay", async {
        let fixture = Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)));
        set_child_subreaper(true).unwrap();
        let orphan = make_idle_orphan();
        kill(orphan, SIGKILL);
        eventually("the orphan ends", || is_zombie(orphan)).await;
        fixture.sweeps(5).await;
        assert!(is_zombie(orphan));
        waitpid(as_pid(orphan), None).unwrap();
    });
}
