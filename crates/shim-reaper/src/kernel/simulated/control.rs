use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::epoll::Disturbance;
use super::kernel::{Descriptor, Simulated};
use super::process::{Parent, Process, ProcessState, Resistance, WaitBy, wait_status};
use super::table::Failure;

/// What tests do with the processes and the kernel.
impl Simulated {
    pub(crate) fn fork(&self, pid: u32) -> usize {
        self.table().add(pid, Parent::This, None)
    }

    /// Adds a process that is not a child of this process.
    pub(crate) fn add_foreign(&self, pid: u32, inspectable: bool) -> usize {
        let mut table = self.table();
        let index = table.add(pid, Parent::Init, None);
        table.processes[index].inspectable = inspectable;
        index
    }

    /// Adds a child that another thread than the main thread forks.
    pub(crate) fn fork_by_thread(&self, pid: u32) -> usize {
        let mut table = self.table();
        let index = table.add(pid, Parent::This, None);
        table.processes[index].forked_by_thread = true;
        index
    }

    pub(crate) fn add(&self, pid: u32, parent: Parent, group: Option<u32>) -> usize {
        self.table().add(pid, parent, group)
    }

    /// Makes a process uninspectable, as one that executed a set-user-ID program is.
    pub(crate) fn forbid_inspection(&self, pid: u32) {
        let mut table = self.table();
        if let Some(index) = table.find(pid) {
            table.processes[index].inspectable = false;
        }
    }

    pub(crate) fn set_resistance(&self, index: usize, resistance: Resistance) {
        self.table().processes[index].resistance = resistance;
    }

    #[cfg(test)]
    pub(crate) fn set_group(&self, pid: u32, pgid: u32) {
        let mut table = self.table();
        if let Some(index) = table.find(pid) {
            table.processes[index].group = Some(pgid);
        }
    }

    /// Returns a pidfd that other code has opened while the process ran. Returns `None` if no
    /// descriptor is free.
    pub(crate) fn pidfd_of(&self, index: usize) -> Option<Descriptor> {
        let mut table = self.table();
        let taken = table.features.pidfds && table.take_descriptor();
        drop(table);
        taken.then(|| self.descriptor(index))
    }

    pub(crate) fn find(&self, pid: u32) -> Option<usize> {
        self.table().find(pid)
    }

    pub(crate) fn process(&self, index: usize) -> Process {
        self.table().processes[index]
    }

    pub(crate) fn group_leader(&self, member: usize) -> Option<usize> {
        self.table().group_leader(member)
    }

    pub(crate) fn process_count(&self) -> usize {
        self.table().processes.len()
    }

    /// Returns whether a new process may get this pid.
    pub(crate) fn is_free(&self, pid: u32) -> bool {
        let table = self.table();
        table.find(pid).is_none() && !table.has_group_member(pid)
    }

    /// Sets the state of the process that has this pid, and raises the events of its watches.
    #[cfg(test)]
    pub(crate) fn set(&self, pid: u32, state: ProcessState) {
        let mut table = self.table();
        if let Some(index) = table.find(pid) {
            table.set(index, state);
        }
    }

    pub(crate) fn set_process(&self, index: usize, state: ProcessState) {
        self.table().set(index, state);
    }

    /// Returns how many events the reaper has not taken.
    #[cfg(test)]
    pub(crate) fn pending_events(&self) -> usize {
        let table = self.table();
        table
            .epoll
            .due_count(&table.processes, table.features, table.now)
    }

    pub(crate) fn watch_count(&self) -> usize {
        self.table().epoll.watch_count()
    }

    /// Returns how many descriptors are in use, apart from those of the epoll and its timer.
    pub(crate) fn pidfd_count(&self) -> usize {
        let table = self.table();
        let own = usize::from(table.epoll.is_open) + usize::from(table.epoll.has_timer());
        table.descriptors - own
    }

    /// Leaves this number of descriptors free.
    pub(crate) fn limit_descriptors(&self, free: usize) {
        let mut table = self.table();
        table.descriptor_limit = table.descriptors.saturating_add(free);
    }

    pub(crate) fn fail_next(&self, failure: Failure) {
        self.table().failures.insert(failure);
    }

    pub(crate) fn disturb(&self, process: usize, disturbance: Disturbance) -> bool {
        let mut table = self.table();
        let found = table.epoll.disturb(process, disturbance);
        table.raise();
        found
    }

    /// Reports an event that no watch has.
    pub(crate) fn report_no_event(&self) {
        self.table().epoll.report_event();
    }

    pub(crate) fn unregister_epoll(&self) {
        self.table().epoll.unregister();
    }

    pub(crate) fn is_epoll_unregistered(&self) -> bool {
        self.table().epoll.is_unregistered()
    }

    #[cfg(test)]
    pub(crate) fn finish_reaping_before_next_poll(&self) {
        self.table().finish_reaping_before_poll = true;
    }

    pub(crate) fn pass_time(&self, time: Duration) {
        let mut table = self.table();
        table.now += time;
        table.raise();
    }

    pub(crate) fn time(&self) -> Instant {
        self.table().now
    }

    #[cfg(test)]
    pub(crate) fn reaped_by_reaper(&self) -> Vec<u32> {
        self.table().reaped_by_reaper.clone()
    }

    /// Waits as the owner or any other code of this process does.
    pub(crate) fn wait_elsewhere(&self, index: usize) -> Option<ExitStatus> {
        let mut table = self.table();
        let ProcessState::Zombie(code) = table.processes[index].state else {
            return None;
        };
        table.set(index, ProcessState::Reaped(code));
        Some(wait_status(code))
    }

    /// Counts a wait that the code of the reaper makes outside of the sweep.
    pub(crate) fn mark_reaped_by_reaper(&self, index: usize) {
        self.table().processes[index].reaped_by = Some(WaitBy::Reaper);
    }
}
