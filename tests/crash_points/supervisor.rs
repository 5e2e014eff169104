//! Lets every call of [`CALLS`] of a process and its descendants wait until this process permits it,
//! makes it fail, or kills the caller: `SECCOMP_RET_USER_NOTIF`, `seccomp_unotify(2)`.
//!
//! Unlike ptrace(2), this does not disturb the waits of the processes for each other.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc::{self, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use vmm_protocol::procfs::status_field;

use crate::calls::{BEGIN, CALLS, END, Kind, MARK};
use crate::common::{as_pid, eventually_blocking};
use crate::durability::Durability;
use crate::point::{Fault, Point, Target};

/// The descriptor of a subject's listener until the supervisor has taken it.
const LISTENER: RawFd = 1000;

/// Makes the calls of this thread, of the threads and of the processes that it will start wait for a
/// supervisor.
pub fn await_supervisor() -> io::Result<()> {
    let mut filter = vec![load(std::mem::offset_of!(libc::seccomp_data, nr))];
    for (number, ..) in CALLS {
        filter.extend(return_if(*number as u32, libc::SECCOMP_RET_USER_NOTIF));
    }
    filter.push(ret(libc::SECCOMP_RET_ALLOW));
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: `program` describes `filter`; both live until the call returns.
    let listener = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    })? as RawFd;
    // SAFETY: the descriptor is new and has no other owner. The copy replaces no descriptor: this
    // process has few.
    let listener = unsafe { OwnedFd::from_raw_fd(listener) };
    let copy = Errno::result(unsafe { libc::dup2(listener.as_raw_fd(), LISTENER) })?;
    // SAFETY: as above.
    let _copy = unsafe { OwnedFd::from_raw_fd(copy) };
    drop(listener);
    // The supervisor writes a line when it has its own copy.
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn load(offset: usize) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32, 0)
}

fn ret(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0)
}

fn return_if(loaded: u32, action: u32) -> [sock_filter; 2] {
    let skip = 1;
    [
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, loaded, skip),
        ret(action),
    ]
}

fn instruction(code: u32, k: u32, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt: 0, jf, k }
}

/// What a supervisor has seen of its subject.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The number of calls that the point counts.
    pub calls: usize,
    /// The call at the point, if there was one.
    pub call: Option<String>,
    /// What the calls of the runtime have made of the names in its home.
    pub durability: Durability,
}

/// A thread that supervises a subject and its descendants until all of them have ended.
pub struct Supervisor {
    seen: Arc<Mutex<Seen>>,
    give_up: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Supervisor {
    /// Supervises a subject, which is in [`await_supervisor`].
    pub fn start(subject: &Child, point: Point) -> Self {
        let listener = take_listener(subject.id());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let give_up = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            listener,
            point,
            subject: subject.id(),
            is_active: false,
            targets: HashMap::new(),
            proc_files: HashSet::new(),
            seen: Arc::clone(&seen),
        };
        let stop = Arc::clone(&give_up);
        Self {
            seen,
            give_up,
            thread: thread::spawn(move || worker.run(&stop)),
        }
    }

    pub fn seen(&self) -> Seen {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether all processes have ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.give_up.store(true, Ordering::Relaxed);
    }
}

/// Copies the listener of a subject.
fn take_listener(subject: u32) -> OwnedFd {
    // SAFETY: both calls have no memory arguments. The descriptors that they return are new.
    let pidfd = unsafe {
        let pidfd = Errno::result(libc::syscall(libc::SYS_pidfd_open, subject, 0)).unwrap();
        OwnedFd::from_raw_fd(pidfd as RawFd)
    };
    let mut listener = -1;
    eventually_blocking("the subject has a listener", || {
        // SAFETY: as above.
        listener = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), LISTENER, 0) };
        listener >= 0
    });
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(listener as RawFd) }
}

struct Worker {
    listener: OwnedFd,
    point: Point,
    subject: u32,
    /// Whether the subject is in the operation.
    is_active: bool,
    /// What each thread belongs to; `None` for the payload.
    targets: HashMap<u32, (u32, Option<Target>)>,
    /// The files of `/proc` that were opened, each counted once.
    proc_files: HashSet<String>,
    seen: Arc<Mutex<Seen>>,
}

enum Response {
    Continue,
    Fail(Errno),
    /// The caller is dead.
    None,
}

impl Worker {
    fn run(mut self, give_up: &AtomicBool) {
        while !give_up.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(
                std::os::fd::AsFd::as_fd(&self.listener),
                PollFlags::POLLIN,
            )];
            poll(&mut fds, 100u8).unwrap();
            let events = fds[0].revents().unwrap();
            if events.contains(PollFlags::POLLIN) {
                if let Some(call) = self.receive() {
                    match self.decide(&call) {
                        Response::Continue => {
                            self.note(&call);
                            self.respond(&call, None);
                        }
                        Response::Fail(errno) => self.respond(&call, Some(errno)),
                        Response::None => {}
                    }
                }
            } else if events.contains(PollFlags::POLLHUP) {
                return;
            }
        }
    }

    fn receive(&self) -> Option<seccomp_notif> {
        // SAFETY: the kernel wants a zeroed value, and fills it.
        let (mut call, result) = unsafe {
            let mut call: seccomp_notif = zeroed();
            let request = libc::_IOWR::<seccomp_notif>(u32::from(b'!'), 0);
            let result = libc::ioctl(self.listener.as_raw_fd(), request, &raw mut call);
            (call, result)
        };
        call.flags = 0;
        // Fails if the caller was killed.
        (result == 0).then_some(call)
    }

    fn respond(&self, call: &seccomp_notif, errno: Option<Errno>) {
        let mut response = seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: errno.map_or(0, |errno| -(errno as i32)),
            flags: match errno {
                None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                Some(_) => 0,
            },
        };
        let request = libc::_IOWR::<seccomp_notif_resp>(u32::from(b'!'), 1);
        // SAFETY: the kernel reads `response`. Fails if the caller was killed.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), request, &raw mut response) };
    }

    fn decide(&mut self, call: &seccomp_notif) -> Response {
        let (process, target) = self.target_of(call.pid);
        if i64::from(call.data.nr) == MARK && process == self.subject {
            match call.data.args[0] as i32 {
                BEGIN => self.is_active = true,
                END => self.is_active = false,
                _ => {}
            }
            return Response::Continue;
        }
        if !self.is_active || target != Some(self.point.series.target) || !self.counts(call) {
            return Response::Continue;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.calls += 1;
        if seen.calls != self.point.number {
            return Response::Continue;
        }
        seen.call = Some(describe(call));
        match self.point.series.fault {
            Fault::Kill => {
                // It may have been killed meanwhile.
                let _ = kill(as_pid(process), Signal::SIGKILL);
                Response::None
            }
            Fault::Error(errno) => Response::Fail(errno),
        }
    }

    /// Notes a call of the runtime that is about to take effect.
    fn note(&mut self, call: &seccomp_notif) {
        if self.target_of(call.pid).0 != self.subject {
            return;
        }
        let (name, kind) = kind_of(call);
        let path = match kind {
            Kind::Entry { path } => text_at(call.pid, call.data.args[path]).unwrap_or_default(),
            Kind::Descriptor if name == "fsync" => file_of(call),
            _ => return,
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.durability.add(name, Path::new(&path));
    }

    /// Returns whether the call counts: for a kill those that change something, for an error those on
    /// files.
    fn counts(&mut self, call: &seccomp_notif) -> bool {
        let kills = matches!(self.point.series.fault, Fault::Kill);
        match kind_of(call).1 {
            Kind::Open { path, flags } => match self.point.series.fault {
                Fault::Kill => call.data.args[flags] as i32 & libc::O_CREAT != 0,
                Fault::Error(errno) => match file_in_proc(call, path) {
                    // A search of the processes opens some files of each.
                    Some(name) => errno == Errno::EMFILE && self.proc_files.insert(name),
                    None => true,
                },
            },
            Kind::Entry { .. } => kills || i64::from(call.data.nr) != libc::SYS_execve,
            Kind::Descriptor => {
                let file = file_of(call);
                if kills {
                    // tokio wakes its threads with it.
                    !file.contains("[eventfd]")
                } else {
                    file.starts_with('/')
                }
            }
            Kind::Other => kills,
        }
    }

    /// Returns the process of a thread, and what it belongs to.
    fn target_of(&mut self, thread: u32) -> (u32, Option<Target>) {
        let subject = self.subject;
        let look_up = || {
            let field = |name| status_field(thread, name).ok()??.parse::<u32>().ok();
            let process = field("Tgid").unwrap_or(thread);
            let target = if process == subject {
                Some(Target::Runtime)
            } else {
                (field("PPid") == Some(subject)).then_some(Target::Shim)
            };
            (process, target)
        };
        *self.targets.entry(thread).or_insert_with(look_up)
    }
}

fn kind_of(call: &seccomp_notif) -> (&'static str, Kind) {
    let number = i64::from(call.data.nr);
    let found = CALLS.iter().find(|(known, ..)| *known == number);
    found.map_or(("?", Kind::Other), |(_, name, kind)| (name, *kind))
}

/// Returns what the descriptor of a call refers to.
fn file_of(call: &seccomp_notif) -> String {
    let link = format!("/proc/{}/fd/{}", call.pid, call.data.args[0]);
    let file = fs::read_link(link).unwrap_or_default();
    file.to_string_lossy().into_owned()
}

/// Returns the name of the file that a call opens, if it is in `/proc`, which has no disk errors.
fn file_in_proc(call: &seccomp_notif, path: usize) -> Option<String> {
    let path = text_at(call.pid, call.data.args[path]).ok()?;
    let name = path.strip_prefix("/proc/")?.rsplit('/').next();
    name.map(str::to_owned)
}

/// Describes a call for a person.
fn describe(call: &seccomp_notif) -> String {
    let (name, kind) = kind_of(call);
    match kind {
        Kind::Open { path, .. } | Kind::Entry { path } => {
            let path = text_at(call.pid, call.data.args[path]).unwrap_or_default();
            format!("{name} {path}")
        }
        Kind::Descriptor => format!("{name} {}", file_of(call)),
        Kind::Other => name.to_owned(),
    }
}

/// Reads a text from the memory of another process.
fn text_at(pid: u32, address: u64) -> io::Result<String> {
    let mut text = [0; 256];
    let length = File::open(format!("/proc/{pid}/mem"))?.read_at(&mut text, address)?;
    let text = text[..length].split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(text.unwrap_or_default()).into_owned())
}
