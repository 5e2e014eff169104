use std::io;

use super::{is_process_gone, read, unless_exhausted};

/// What `/proc/<pid>/stat` shows of a process, `proc_pid_stat(5)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// The state of the main thread, which other threads may outlive: `Z` is a zombie, `T` and `t`
    /// are stopped by a signal and by a tracer.
    pub state: char,
    /// The pid of the parent; 0 if it is in an outer pid namespace.
    pub parent: u32,
    /// The session, `setsid(2)`; 0 if its leader is in an outer pid namespace.
    pub session: u32,
    /// The CPU time of the process and of the children that it has reaped, in clock ticks.
    pub cpu_ticks: u64,
    /// The start time since boot, in clock ticks.
    pub start_time: u64,
    /// The resident memory, in pages.
    pub rss_pages: u64,
    virtual_bytes: u64,
    /// The addresses at which the arguments begin and end; `None` before Linux 3.5, and for a process
    /// that this process may not inspect.
    pub(super) arguments: Option<(u64, u64)>,
    /// `None` before Linux 3.5.
    env_end: Option<u64>,
}

impl Stat {
    /// Reads the file of the process that currently has this pid. Returns `None` if no process has
    /// it, or if this process may not read the file.
    ///
    /// # Errors
    ///
    /// If file descriptors or memory are exhausted.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        Ok(unless_exhausted(Self::read(pid))?.flatten())
    }

    /// Does what [`of`](Self::of) does, but returns `None` only if no process has the pid.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        match read(pid, "stat") {
            Ok(stat) => Self::parse(&stat).map(Some).ok_or_else(|| {
                let message = format!("cannot parse /proc/{pid}/stat");
                io::Error::new(io::ErrorKind::InvalidData, message)
            }),
            Err(error) if is_process_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns true if the main thread has exited.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Returns true if the process is in the middle of an `execve(2)`: it has its new memory but
    /// not yet its arguments and its environment, which the kernel sets last. Returns true also for
    /// a process that this process may not inspect.
    pub fn is_in_execve(&self) -> bool {
        // Zombies and kernel threads have no memory.
        self.virtual_bytes != 0 && self.env_end == Some(0)
    }

    pub(crate) fn parse(stat: &[u8]) -> Option<Self> {
        // The process chooses its name, field 2, which can contain any bytes except a NUL.
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<_> = str::from_utf8(stat.get(name_end + 1..)?)
            .ok()?
            .split_ascii_whitespace()
            .collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |field_number| field(field_number)?.parse::<u64>().ok();
        // -1 while the kernel releases the process.
        let id = |number| u32::try_from(field(number)?.parse::<i64>().ok()?.max(0)).ok();
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: id(4)?,
            session: id(6)?,
            cpu_ticks: (14..=17)
                .map(number)
                .try_fold(0_u64, |sum, ticks| Some(sum.saturating_add(ticks?)))?,
            start_time: number(22)?,
            virtual_bytes: number(23)?,
            rss_pages: number(24)?,
            arguments: number(48).zip(number(49)).filter(|(start, _)| *start != 0),
            env_end: number(51),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{self, Command};

    use nix::sys::prctl;

    use super::super::tests::eventually;
    use super::*;

    /// The fields from 4 on have their own numbers as values.
    fn line(name: &[u8], fields: u64) -> Vec<u8> {
        let rest: Vec<_> = (4..=fields).map(|number| number.to_string()).collect();
        [b"42 (", name, b") S ", rest.join(" ").as_bytes(), b"\n"].concat()
    }

    #[test]
    fn fields_are_found_after_any_name() {
        let expected = Stat {
            state: 'S',
            parent: 4,
            session: 6,
            cpu_ticks: 14 + 15 + 16 + 17,
            start_time: 22,
            virtual_bytes: 23,
            rss_pages: 24,
            arguments: Some((48, 49)),
            env_end: Some(51),
        };
        for name in [&b"sh"[..], b"", b"a) Z 1", b") (", b"a\nb", b"\xff\xfe"] {
            assert_eq!(Stat::parse(&line(name, 52)), Some(expected), "{name:?}");
        }
        let older = Stat {
            arguments: None,
            env_end: None,
            ..expected
        };
        assert_eq!(Stat::parse(&line(b"sh", 44)), Some(older));
    }

    #[test]
    fn an_incomplete_line_is_rejected() {
        let complete = line(b"a", 24);
        assert!(Stat::parse(&complete).is_some());
        for length in 0..complete.len() - 3 {
            assert_eq!(Stat::parse(&complete[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_process_cannot_choose_its_parent_or_session_by_its_name() {
        let name = c") R 1 1 1 \n\xff";
        let renamed = std::thread::spawn(move || {
            prctl::set_name(name).unwrap();
            let stat = fs::read("/proc/thread-self/stat").unwrap();
            assert!(stat.windows(8).any(|part| part == b"(\x29 R 1 1"));
            Stat::parse(&stat).unwrap()
        });
        let renamed = renamed.join().unwrap();
        let this = Stat::of(process::id()).unwrap().unwrap();
        assert_eq!(renamed.parent, this.parent);
        assert_eq!(renamed.session, this.session);
        assert_eq!(this.parent, std::os::unix::process::parent_id());
        assert!(this.rss_pages > 0 && !this.is_zombie() && !this.is_in_execve());
    }

    #[test]
    fn a_zombie_is_recognized_and_a_reaped_process_is_not_found() {
        let mut child = Command::new("true").spawn().unwrap();
        let stat = || Stat::of(child.id()).unwrap();
        eventually(|| stat().unwrap().is_zombie());
        assert_eq!(stat().unwrap().parent, process::id());
        assert!(!stat().unwrap().is_in_execve());
        child.wait().unwrap();
        assert_eq!(Stat::of(child.id()).unwrap(), None);
        assert_eq!(Stat::of(u32::MAX).unwrap(), None);
    }
}
