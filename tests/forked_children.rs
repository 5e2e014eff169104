//! Children that the program forks without executing another one: they have copies of all that is
//! the runtime's.

mod common;

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::process;
use std::thread;
use std::time::Duration;

use common::boxes::{in_two_processes, open, sleeping, started};
use common::herd::forked;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, as_pid, eventually, kill};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, VmmRuntime};

/// How long a child may take between its fork and its exec.
const FORKING: Duration = Duration::from_millis(300);

#[test]
fn a_home_whose_holder_is_dead_opens_when_a_forked_child_releases_it() {
    in_two_processes(
        "a_home_whose_holder_is_dead_opens_when_a_forked_child_releases_it",
        |options| {
            let go = options.home.join("go");
            let go = CString::new(go.as_os_str().as_bytes()).unwrap();
            block_on(async {
                let _runtime = VmmRuntime::open(options).await.unwrap();
                forked(|| {
                    for descriptor in 0..3 {
                        // SAFETY: nothing uses them any more.
                        unsafe { libc::close(descriptor) };
                    }
                    for _ in 0..DEADLINE.as_millis() {
                        // SAFETY: a path that ends with a NUL.
                        if unsafe { libc::access(go.as_ptr(), libc::F_OK) } == 0 {
                            break;
                        }
                        // SAFETY: takes a number.
                        unsafe { libc::usleep(1000) };
                    }
                });
                kill(process::id(), Signal::SIGKILL);
            });
        },
        |home, _| {
            let go = home.path().join("go");
            let releases = thread::spawn(move || {
                thread::sleep(FORKING);
                fs::write(go, "").unwrap();
            });
            block_on(async {
                let runtime = VmmRuntime::open(common::boxes::options(home.path())).await;
                releases.join().unwrap();
                runtime.unwrap().shutdown(DEADLINE).await;
            });
        },
    );
}

#[test]
fn a_forked_child_that_shuts_down_and_drops_the_runtime_takes_nothing_from_its_parent() {
    let test = "a_forked_child_that_shuts_down_and_drops_the_runtime_takes_nothing_from_its_parent";
    in_own_process(test, || {
        let home = PerTestBoxHome::new();
        block_on(async {
            let mut runtime = ManuallyDrop::new(open(&home).await);
            let running = started(&runtime, sleeping()).await;
            let child = forked(|| {
                // As a handler of atexit(3) does.
                runtime.shutdown_sync(Duration::ZERO);
                // SAFETY: the copy of the child, which does not use it again.
                unsafe { ManuallyDrop::drop(&mut runtime) };
            });
            eventually("the end of the child", || {
                let status = waitpid(as_pid(child), Some(WaitPidFlag::WNOHANG));
                status.unwrap() != WaitStatus::StillAlive
            })
            .await;

            let lock = File::open(home.path().join("lock")).unwrap();
            let second = lock.try_lock();
            assert!(
                matches!(second, Err(TryLockError::WouldBlock)),
                "{second:?}"
            );
            let info = runtime.info(&running.id).await.unwrap();
            assert_eq!((info.status, info.pid), (BoxStatus::Running, running.pid));
            // It still knows of the death of its shims.
            kill(running.pid.unwrap(), Signal::SIGKILL);
            let ended = runtime.wait(&running.id).await.unwrap();
            assert_eq!(ended.signal, Some(9));
            runtime.shutdown(DEADLINE).await;
        });
    });
}
