use super::kernel::{Descriptor, Simulated};
use super::mechanism::Mechanism;
use super::process::{Parent, ProcessState, WaitBy, wait_status};
use super::table::Failure;
use crate::ResourceUsage;
use crate::kernel::{Target, WaitResult};
use crate::sys::ChildExit;

impl Simulated {
    /// Waits for a child of this process, by `waitid` or in what the kernel has reaped for a request.
    pub(super) fn wait(
        &self,
        target: &Target<'_, Descriptor>,
        reap: bool,
        is_orphan: bool,
    ) -> WaitResult {
        let &Target::Pidfd(_, pidfd) = target else {
            return self.waitid(target, reap, is_orphan);
        };
        if let Some(result) = self.status_of(pidfd, !reap) {
            return result;
        }
        match self.waitid(target, reap, is_orphan) {
            WaitResult::NotWaitable => self
                .status_of_reaped(pidfd, !reap)
                .unwrap_or(WaitResult::NotWaitable),
            result => result,
        }
    }

    fn waitid(&self, target: &Target<'_, Descriptor>, reap: bool, is_orphan: bool) -> WaitResult {
        self.interrupt("waitid");
        if self.fails(Failure::Wait).is_err() {
            self.interrupt("waitid after EINTR");
        }
        if self.is_blind() {
            return WaitResult::Running;
        }
        let features = self.features();
        let by_pidfd = features.wait_by_pidfd;
        if let (Target::Pidfd(_, pidfd), false) = (target, by_pidfd) {
            if self.process(pidfd.process).state.is_reaped() {
                return WaitResult::NotWaitable;
            }
            self.interrupt("waitid by pid");
        }
        let mut table = self.table();
        let index = match target {
            Target::Pidfd(_, pidfd) if by_pidfd && !features.lacks(Mechanism::PidfdInWaits) => {
                Some(pidfd.process)
            }
            Target::Pidfd(pid, _) | Target::Pid(pid) => table.find(*pid),
        };
        let Some(index) = index else {
            return WaitResult::NotWaitable;
        };
        let process = &mut table.processes[index];
        let pid = process.pid;
        let code = match process.state {
            _ if process.parent != Parent::This => return WaitResult::NotWaitable,
            ProcessState::Running | ProcessState::Traced(_) => return WaitResult::Running,
            ProcessState::BeingReaped(_) | ProcessState::Reaped(_) => {
                return WaitResult::NotWaitable;
            }
            ProcessState::Zombie(code) => code,
        };
        if reap {
            process.reaped_by = Some(WaitBy::Reaper);
            table.set(index, ProcessState::Reaped(code));
            table.reaped_by_reaper.push(pid);
        }
        drop(table);
        if let (true, Some(interrupts)) = (reap, self.interrupts()) {
            interrupts.reaped(index, is_orphan);
        }
        WaitResult::Exited(ChildExit {
            status: wait_status(code),
            usage: Some(ResourceUsage::default()),
        })
    }
}
