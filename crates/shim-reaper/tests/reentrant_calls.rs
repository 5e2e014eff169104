//! Code of the embedder that the reaper calls may call the reaper: log subscribers, and wakers.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::future::Future;
use std::pin::pin;
use std::process;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};
use std::thread;

use common::own_process::in_own_process;
use common::{DEADLINE, exits_with, sleeper};
use nix::sys::wait::waitpid;
use shim_reaper::{ReaperClosed, ShimHandle, ShimReaper, SpawnOptions};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{self, Layer, SubscriberExt};

/// Ends this process if `body` does not return, because its thread waits for a lock that it holds.
fn expect_to_return(body: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        body();
        sender.send(()).unwrap();
    });
    if receiver.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
        eprintln!("not within {DEADLINE:?}: the call returns");
        process::exit(1);
    }
    thread.join().unwrap();
}

/// A subscriber that shuts down the reaper at the first warning.
#[derive(Clone, Default)]
struct ShutsDown(Arc<OnceLock<(ShimReaper, ShimHandle)>>);

impl<S: Subscriber> Layer<S> for ShutsDown {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let Some((reaper, stolen)) = self.0.get() else {
            return;
        };
        // Each locks something: the directory, and the state of the shim.
        reaper.registered();
        reaper.stats();
        stolen.is_running();
        if *event.metadata().level() == Level::WARN {
            reaper.shutdown_sync();
        }
    }
}

#[test]
fn a_log_subscriber_may_call_the_reaper() {
    in_own_process("a_log_subscriber_may_call_the_reaper", || {
        expect_to_return(|| {
            let subscriber = ShutsDown::default();
            let registry = tracing_subscriber::registry().with(subscriber.clone());
            tracing::subscriber::set_global_default(registry).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let reaper = runtime.block_on(async { ShimReaper::start() });
            let stolen = reaper.spawn(exits_with(3)).unwrap();
            let options = SpawnOptions::new().kill_on_drop(true);
            let running = reaper.spawn_with(sleeper(), options).unwrap();
            // The reaper does not run yet.
            waitpid(common::as_pid(stolen.id()), None).unwrap();
            subscriber.0.set((reaper.clone(), stolen.clone())).unwrap();
            runtime.block_on(stolen).unwrap();
            let closed = runtime.block_on(running.wait());
            assert_eq!(closed, Err(ReaperClosed));
            assert_eq!(reaper.shutdown_sync().still_running, [running.id()]);
        });
    });
}

/// A waker that uses a handle when it is cloned or dropped.
fn waker_that_uses(handle: &'static ShimHandle) -> Waker {
    fn use_handle(handle: *const ()) {
        // SAFETY: the data of the waker is a handle that lives for ever.
        let handle = unsafe { &*handle.cast::<ShimHandle>() };
        let _ = handle.try_wait();
    }

    fn clone(handle: *const ()) -> RawWaker {
        use_handle(handle);
        RawWaker::new(handle, &VTABLE)
    }

    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, use_handle, use_handle, use_handle);
    // SAFETY: the functions of the table only use a shared reference.
    unsafe { Waker::from_raw(RawWaker::new((&raw const *handle).cast(), &VTABLE)) }
}

#[test]
fn a_waker_may_use_the_handle_that_it_waits_for() {
    expect_to_return(|| {
        let reaper = ShimReaper::builder().start_dedicated().unwrap();
        let options = SpawnOptions::new().kill_on_drop(true);
        let handle = reaper.spawn_with(sleeper(), options).unwrap();
        let handle: &'static ShimHandle = Box::leak(Box::new(handle));
        {
            let mut wait = pin!(handle.wait());
            for _ in 0..2 {
                let waker = waker_that_uses(handle);
                let poll = wait.as_mut().poll(&mut Context::from_waker(&waker));
                assert!(poll.is_pending());
            }
        }
        handle.start_kill().unwrap();
        handle.wait_blocking().unwrap();
    });
}
