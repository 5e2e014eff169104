use crate::system;

/// Sleeping children that no peer collects.
pub(crate) struct Children {
    pub(crate) pids: Vec<u32>,
}

impl Children {
    #[allow(clippy::zombie_processes)]
    pub(crate) fn start(count: usize) -> Self {
        let start = |_| system::sleeper().spawn().unwrap().id();
        Self {
            pids: (0..count).map(start).collect(),
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for pid in &self.pids {
            system::kill(*pid);
        }
        for pid in &self.pids {
            system::wait(*pid);
        }
    }
}
