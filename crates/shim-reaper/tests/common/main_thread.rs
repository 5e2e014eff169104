//! A process whose main thread has exited, which `/proc` shows as a zombie.

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

use super::{eventually_blocking, is_zombie};

/// Ends the main thread of this process, and no other thread.
pub fn end_main_thread() {
    extern "C" fn exit_thread(_: libc::c_int) {
        // SAFETY: ends the calling thread, which owns nothing that is used afterwards.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let pid = std::process::id();
    // SAFETY: the handler makes one system call, and the call takes integers only.
    unsafe {
        let handler = SigHandler::Handler(exit_thread);
        signal(Signal::SIGUSR1, handler).unwrap();
        libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1);
    }
    eventually_blocking("the main thread exits", || is_zombie(pid));
}
