//! Messages over sockets, which can carry a descriptor: `SCM_RIGHTS` in `unix(7)`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A buffer for one control message with one descriptor, aligned for its header.
#[repr(C)]
union Control {
    _aligned: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Sends the bytes of a value, with a descriptor if there is one. Async-signal-safe.
pub fn send<T: Copy>(
    socket: BorrowedFd<'_>,
    value: &T,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut control = Control { bytes: [0; 64] };
    let mut part = libc::iovec {
        iov_base: (value as *const T).cast_mut().cast(),
        iov_len: size_of::<T>(),
    };
    let mut message = message(&mut part, &mut control);
    // SAFETY: the control buffer has room for one header and one descriptor behind it. All that the
    // message points to is valid for the call, which does not write to it.
    let sent = unsafe {
        match fd {
            None => message.msg_controllen = 0,
            Some(fd) => {
                message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                let place = libc::CMSG_DATA(header).cast::<RawFd>();
                place.write_unaligned(fd.as_raw_fd());
            }
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A message of one byte, or the end of the stream.
#[derive(Debug)]
pub struct Received {
    /// Whether it is the end.
    pub is_end: bool,
    /// The descriptor that the message has, close-on-exec.
    pub fd: Option<OwnedFd>,
    /// Whether the message had a descriptor for which this process has no number.
    pub lost_fd: bool,
}

/// Receives one byte, with a descriptor if there is one.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut control = Control { bytes: [0; 64] };
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let mut message = message(&mut part, &mut control);
    let received = loop {
        // SAFETY: all that the message points to is valid for writes during the call.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            break received;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has filled the control buffer with whole messages, if any; an SCM_RIGHTS
    // message carries a descriptor that this process owns from now on.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let has_fd = !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS;
        has_fd.then(|| {
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            OwnedFd::from_raw_fd(fd)
        })
    };
    Ok(Received {
        is_end: received == 0,
        fd,
        lost_fd: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

fn message(part: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: empty, with null pointers.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = (control as *mut Control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    message
}
