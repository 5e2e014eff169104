//! The pidfd of a child of std, which cannot open it when it creates the child: the child does so itself.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::Arc;

use nix::libc;
use pidfd_spawn::__private::{pidfd_open, receive, send};

/// Makes the child report through `socket`, just before it executes the program: it sends its pidfd,
/// and if it cannot join the process group or execute the program, the error. [`receive_report`]
/// receives both.
///
/// The caller keeps `socket` until the command has been spawned. If it is spawned again, that child
/// reports nothing, and joins no group.
pub(crate) fn report_before_exec(
    command: &mut Command,
    join_group: Option<i32>,
    socket: &Arc<UnixStream>,
) {
    let socket = Arc::downgrade(socket);
    // SAFETY: the closure only makes system calls, on memory of its own stack; it frees no memory,
    // because the caller has the socket too.
    unsafe {
        command.pre_exec(move || {
            if let Some(socket) = socket.upgrade() {
                if send_own_pidfd(socket.as_fd()) {
                    redirect_exec_error(socket.as_raw_fd());
                }
                if let Some(pgroup) = join_group {
                    if libc::setpgid(0, pgroup) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
            }
            Ok(())
        });
    }
}

/// What a child has sent: see [`report_before_exec`].
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) exec_error: Option<io::Error>,
}

/// Sends one byte, with a pidfd of the calling process if it can open one. Async-signal-safe.
fn send_own_pidfd(socket: BorrowedFd<'_>) -> bool {
    let pidfd = pidfd_open(process::id()).ok();
    // Closes the pidfd, which leaves a descriptor for the file that `redirect_exec_error` opens.
    send(socket, &0_u8, pidfd.as_ref().map(AsFd::as_fd)).is_ok()
}

/// Makes std write the error of a later step of the child to `socket`. Async-signal-safe.
///
/// std reports that error to its parent side through a socket pair. The parent side then waits for
/// the child, and panics if SIGCHLD is ignored or a foreign wait came first. Here, `socket` replaces
/// the child's end of that pair, so that the parent side sees the end of file that means success.
/// Other close-on-exec sockets of that type are replaced too: the `exec` would close them.
///
/// Asks for the type of every descriptor instead of listing `/proc/self/fd`, because the kernel would
/// keep an entry for each name, and remove them all when the child is reaped.
fn redirect_exec_error(socket: RawFd) {
    for fd in 0..descriptor_table_size() {
        if fd != socket && is_seqpacket_closed_on_exec(fd) {
            // SAFETY: takes and returns integers; `exec` would close the replaced descriptor.
            unsafe { libc::dup3(socket, fd, libc::O_CLOEXEC) };
        }
    }
}

/// Returns a number that every open descriptor is below, or 0 without `/proc`. Async-signal-safe.
fn descriptor_table_size() -> RawFd {
    // The field is among the first, after a name of at most 64 bytes.
    let mut buffer = [0_u8; 512];
    // SAFETY: the path ends with a NUL, and the buffer is valid for writes of its length.
    let length = unsafe {
        let status = libc::open(
            c"/proc/self/status".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        );
        let length = libc::read(status, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(status);
        length
    };
    let status = usize::try_from(length).ok().and_then(|n| buffer.get(..n));
    parse_descriptor_table_size(status.unwrap_or_default())
}

/// Async-signal-safe.
pub(crate) fn parse_descriptor_table_size(status: &[u8]) -> RawFd {
    const FIELD: &[u8] = b"\nFDSize:\t";
    let mut fields = status.windows(FIELD.len());
    let Some(start) = fields.position(|bytes| bytes == FIELD) else {
        return 0;
    };
    let digits = status.iter().skip(start + FIELD.len());
    digits
        .map_while(|byte| char::from(*byte).to_digit(10))
        .fold(0, |size: RawFd, digit| {
            size.saturating_mul(10).saturating_add(digit as RawFd)
        })
}

fn is_seqpacket_closed_on_exec(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are valid for writes of their types during the call.
    let is_socket = unsafe {
        let kind = (&raw mut kind).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, kind, &raw mut size) == 0
    };
    if !is_socket || kind != libc::SOCK_SEQPACKET {
        return false;
    }
    // SAFETY: takes and returns integers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

/// Receives what a child has sent. Returns when it has executed its program or ended.
pub(crate) fn receive_report(mut socket: &UnixStream) -> Report {
    let mut report = Report::default();
    let Ok(received) = receive(socket.as_fd()) else {
        return report;
    };
    report.pidfd = received.fd;
    // std sends the error number in network order, and a footer.
    let mut error = [0; 8];
    if !received.is_end && socket.read_exact(&mut error).is_ok() {
        let [a, b, c, d, ..] = error;
        let errno = i32::from_be_bytes([a, b, c, d]);
        report.exec_error = Some(io::Error::from_raw_os_error(errno));
    }
    report
}
