use std::collections::HashMap;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::yield_now;
use vmm_protocol::FILES;

use crate::driver::Driver;
use crate::sys;

/// Reports when shims record that their payloads are paused or continue: a guest can do both without a
/// request of this runtime, for example after an error of its disk.
///
/// One inotify instance watches the directories of all boxes that run, so a box that is not paused
/// costs no time. A payload can create files in its directory all the time: events coalesce, and those
/// of other boxes that the kernel drops for lack of room are made up for.
#[derive(Clone, Debug)]
pub(crate) struct PauseWatcher {
    inotify: Arc<AsyncFd<OwnedFd>>,
    watched: Arc<Mutex<Watched>>,
}

/// What is notified of a change, by watch descriptor. A directory has one descriptor.
type Watched = HashMap<i32, Arc<Notify>>;

/// The changes of one box. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct PauseChanges {
    watcher: PauseWatcher,
    descriptor: i32,
    changed: Arc<Notify>,
    /// Whether the record was there when it was read last.
    was_recorded: bool,
}

impl PauseWatcher {
    /// Starts the task that reads the changes. Fails if the user has too many inotify instances.
    pub(crate) fn start(driver: &Driver) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let _context = driver.handle().enter();
        let watcher = Self {
            inotify: Arc::new(sys::poll_readable(inotify)?),
            watched: Arc::default(),
        };
        let of_task = watcher.clone();
        driver.handle().spawn(async move {
            // The task ends with the runtime.
            let _ = of_task.read().await;
        });
        Ok(watcher)
    }

    /// Watches the directory of a box. An earlier watch of it ends.
    pub(crate) fn watch(&self, dir: &Path) -> io::Result<PauseChanges> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let changed = Arc::new(Notify::new());
        // The record may be there already.
        changed.notify_one();
        let mut watched = self.watched();
        let descriptor = inotify::add_watch(self.inotify.get_ref(), dir, flags)?;
        watched.insert(descriptor, Arc::clone(&changed));
        Ok(PauseChanges {
            watcher: self.clone(),
            descriptor,
            changed,
            was_recorded: false,
        })
    }

    async fn read(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(rustix::io::Errno::AGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                let name = event.file_name().map(|name| name.to_bytes());
                if name == Some(FILES.paused.as_bytes()) {
                    let watched = self.watched();
                    watched.get(&event.wd()).inspect(|it| it.notify_one());
                } else if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    self.watched().values().for_each(|it| it.notify_one());
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
            // Payloads that create files faster than this task reads must not occupy the thread.
            yield_now().await;
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PauseChanges {
    /// Waits until the record may have changed since the last call.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns whether the payload is paused, if the record shows that.
    ///
    /// If it is missing, the payload continues only if it was there before: a shim cannot write it to a
    /// full disk.
    pub(crate) fn is_paused(&mut self, is_recorded: bool) -> Option<bool> {
        let was_recorded = mem::replace(&mut self.was_recorded, is_recorded);
        (is_recorded || was_recorded).then_some(is_recorded)
    }
}

impl Drop for PauseChanges {
    fn drop(&mut self) {
        let mut watched = self.watcher.watched();
        // A later watch of the same directory has the same descriptor.
        let current = watched.get(&self.descriptor);
        if current.is_some_and(|current| Arc::ptr_eq(current, &self.changed)) {
            watched.remove(&self.descriptor);
            let inotify = self.watcher.inotify.get_ref();
            // Fails if the directory has been removed.
            let _ = inotify::remove_watch(inotify, self.descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// Makes a change after events of another directory have filled the queue of the kernel, which drops those
    /// of the change.
    fn change_during_overflow(driver: &Driver, noisy: &TempDir, change: impl Fn()) {
        // The driver reads nothing until `read` is dropped.
        let (read, wait) = channel::<()>();
        let (blocks, is_blocked) = channel();
        driver.handle().spawn(async move {
            blocks.send(()).unwrap();
            wait.recv()
        });
        is_blocked.recv().unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: u32 = limit.trim().parse().unwrap();
        for number in 0..=limit / 2 {
            let path = noisy.path().join(number.to_string());
            File::create(&path).unwrap();
            fs::remove_file(path).unwrap();
        }
        change();
        drop(read);
    }

    #[tokio::test]
    async fn a_change_is_reported_although_another_box_fills_the_queue_of_the_kernel() {
        let driver = Driver::start().unwrap();
        let watcher = PauseWatcher::start(&driver).unwrap();
        let [paused, noisy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut changes = watcher.watch(paused.path()).unwrap();
        let _noise = watcher.watch(noisy.path()).unwrap();
        let record = paused.path().join(FILES.paused);
        let write = || drop(File::create(&record).unwrap());
        let delete = || fs::remove_file(&record).unwrap();
        let changes_of_record: [(&dyn Fn(), Option<bool>); 5] = [
            // The shim could not write it, or has not paused its payload.
            (&|| (), None),
            (&write, Some(true)),
            (&|| (), Some(true)),
            (&delete, Some(false)),
            (&|| (), None),
        ];
        // A new watch reports a change.
        changes.changed().await;
        assert_eq!(changes.is_paused(record.exists()), None);
        for (change, is_paused) in changes_of_record {
            change_during_overflow(&driver, &noisy, change);
            let changed = timeout(DEADLINE, changes.changed()).await;
            changed.expect("the change is lost");
            assert_eq!(changes.is_paused(record.exists()), is_paused);
        }
    }
}
