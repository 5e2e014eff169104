use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use shim_reaper::ShimHandle;

use crate::peer::Ours;
use crate::population::Children;
use crate::report::{Column, Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples};
use crate::system;

const ROUNDS: usize = 10;
const CHILDREN: usize = 2_000;
const BATCH: usize = 50;

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let children = Children::start(CHILDREN);
    let (mut our_samples, mut bare) = (Samples::default(), Samples::default());
    for _ in 0..effort.times(ROUNDS) {
        let ours = Ours::new();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut handles = Vec::with_capacity(CHILDREN);
        let mut pidfds = Vec::with_capacity(CHILDREN);
        // Different children for each, because the second pidfd of a process is cheaper.
        for pids in children.pids.chunks_exact(2 * BATCH) {
            let (to_register, to_open) = pids.split_at(BATCH);

            let start = Instant::now();
            ours.runtime
                .block_on(register(&ours, to_register, &mut handles));
            our_samples.push_block(start.elapsed().as_secs_f64() / BATCH as f64);

            let start = Instant::now();
            open(&epoll, to_open, &mut pidfds);
            bare.push_block(start.elapsed().as_secs_f64() / BATCH as f64);
        }
    }
    report
        .row("Register, per call", Unit::Time)
        .set(Column::Ours, our_samples.median())
        .set(Column::Floor, bare.median())
        .goal(
            "the bare calls",
            our_samples.ratio_to(&bare, MEDIAN),
            Limit::AtMost(2.0),
        );
}

async fn register(ours: &Ours, pids: &[u32], handles: &mut Vec<ShimHandle>) {
    for pid in pids {
        handles.push(ours.reaper.register(*pid).unwrap());
    }
}

fn open(epoll: &Epoll, pids: &[u32], pidfds: &mut Vec<OwnedFd>) {
    for pid in pids {
        let pidfd = system::pidfd_open(*pid);
        let event = EpollEvent::new(
            EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT,
            u64::from(*pid),
        );
        epoll.add(&pidfd, event).unwrap();
        pidfds.push(pidfd);
    }
}
