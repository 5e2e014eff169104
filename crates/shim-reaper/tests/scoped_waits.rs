//! The reaper waits for registered processes only.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::process::Child;
use std::time::Duration;

use common::own_process::{block_on, in_own_process, in_own_process_unchecked};
use common::{Fixture, KillOnDrop, eventually, exits_with, is_zombie, shell};
use nix::libc;
use shim_reaper::{ReaperBuilder, SpawnOptions};
use std::os::unix::process::ExitStatusExt;

in_both_modes!(
    unregistered_child_exit_code_is_not_stolen,
    unregistered_children_keep_their_exit_codes_beside_a_busy_reaper
);

async fn unregistered_child_exit_code_is_not_stolen(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(5)));
    let mut child = exits_with(42).spawn().unwrap();
    eventually("the child exits", || is_zombie(child.id())).await;
    fixture.sweeps(20).await;
    assert!(is_zombie(child.id()), "the zombie stays for its owner");
    assert_eq!(child.wait().unwrap().code(), Some(42));
    fixture.expect(0, 0, 0).await;
}

async fn unregistered_children_keep_their_exit_codes_beside_a_busy_reaper(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(5)));
    let mut unregistered: Vec<(i32, Child)> = Vec::new();
    for i in 0..1_000 {
        let code = i % 200;
        unregistered.push((code, exits_with(code).spawn().unwrap()));
        if i % 4 == 0 {
            drop(fixture.reaper.spawn(exits_with(1)).unwrap());
        }
    }
    fixture.expect(250, 0, 0).await;
    fixture.sweeps(3).await;
    for (code, mut child) in unregistered {
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    fixture.expect(250, 0, 0).await;
}

/// A seccomp filter kills the process at the first wait that does not name a child or a group.
#[test]
fn the_reaper_never_waits_for_any_child_or_its_own_process_group() {
    in_own_process(
        "the_reaper_never_waits_for_any_child_or_its_own_process_group",
        || {
            forbid_unscoped_waits();
            for pidfd in [true, false] {
                block_on(exercise_all_registrations(pidfd));
            }
        },
    );
}

#[test]
fn the_filter_kills_a_process_at_an_unscoped_wait() {
    let output = in_own_process_unchecked("the_filter_kills_a_process_at_an_unscoped_wait", || {
        forbid_unscoped_waits();
        // SAFETY: a null status pointer is allowed.
        unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    });
    if let Some(output) = output {
        assert_eq!(output.status.signal(), Some(libc::SIGSYS));
    }
}

async fn exercise_all_registrations(pidfd: bool) {
    let fixture = Fixture::new(
        shim_reaper::ShimReaper::builder()
            .pidfd(pidfd)
            .sweep_interval(Duration::from_millis(5)),
    );
    let reaper = &fixture.reaper;
    let mut children = KillOnDrop::default();
    for _ in 0..20 {
        drop(reaper.spawn(exits_with(3)).unwrap());
        let child = exits_with(3).spawn().unwrap();
        drop(reaper.register_child(child).unwrap());
        let child = exits_with(3).spawn().unwrap();
        drop(reaper.register(child.id()).unwrap());
        drop(reaper.attach(1).unwrap());
        let group = SpawnOptions::new().process_group(0);
        drop(
            reaper
                .spawn_with(shell("sleep 0.1 & exit 4"), group)
                .unwrap(),
        );
        let pid = children.spawn(common::sleeper()).unwrap();
        drop(reaper.register(pid).unwrap());
    }
    fixture.expect(80, 0, 21).await;
    fixture.sweeps(10).await;
    assert_eq!(reaper.shutdown().await.still_running.len(), 21);
}

/// Installs a filter that kills the process on `wait4` with a pid of 0 or below, and on `waitid` with
/// `P_ALL` or with process group 0. The filter applies to this thread and to all that it starts.
fn forbid_unscoped_waits() {
    // Offsets in struct seccomp_data: the low halves of the arguments on a little-endian machine.
    const NUMBER: u32 = 0;
    const ARGUMENT_0: u32 = 16;
    const ARGUMENT_1: u32 = 24;
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let jump = |op, value: u32, if_true, if_false| libc::sock_filter {
        code: u16::try_from(libc::BPF_JMP | op | libc::BPF_K).unwrap(),
        jt: if_true,
        jf: if_false,
        k: value,
    };
    let number = |number: i64| u32::try_from(number).unwrap();
    let filter = [
        load(NUMBER),
        jump(libc::BPF_JEQ, number(libc::SYS_wait4), 1, 0),
        jump(libc::BPF_JEQ, number(libc::SYS_waitid), 3, 8),
        // wait4: a pid that is zero or negative.
        load(ARGUMENT_0),
        jump(libc::BPF_JEQ, 0, 7, 0),
        jump(libc::BPF_JGE, 0x8000_0000, 6, 5),
        // waitid: P_ALL, or P_PGID with 0.
        load(ARGUMENT_0),
        jump(libc::BPF_JEQ, libc::P_ALL, 4, 0),
        jump(libc::BPF_JEQ, libc::P_PGID, 0, 2),
        load(ARGUMENT_1),
        jump(libc::BPF_JEQ, 0, 1, 0),
        statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW),
        statement(libc::BPF_RET, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the filter during the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k: value,
    }
}
