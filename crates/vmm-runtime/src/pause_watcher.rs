use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vmm_protocol::FILES;

use crate::driver::Driver;
use crate::sys;

/// Reports when shims record that their payloads are paused or continue: a guest can do both without a
/// request of this runtime, for example after an error of its disk.
///
/// One inotify instance watches the directories of all boxes that run, so a box that is not paused
/// costs no time.
#[derive(Clone, Debug)]
pub(crate) struct PauseWatcher {
    inotify: Arc<AsyncFd<OwnedFd>>,
    watched: Arc<Mutex<Watched>>,
}

/// The receivers of the changes, by watch descriptor. A directory has one descriptor.
type Watched = HashMap<i32, UnboundedSender<bool>>;

/// The changes of one box. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct PauseChanges {
    watcher: PauseWatcher,
    descriptor: i32,
    changes: UnboundedReceiver<bool>,
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
        let (sender, changes) = unbounded_channel();
        let mut watched = self.watched();
        let descriptor = inotify::add_watch(self.inotify.get_ref(), dir, flags)?;
        watched.insert(descriptor, sender);
        Ok(PauseChanges {
            watcher: self.clone(),
            descriptor,
            changes,
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
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                };
                let name = event.file_name().map(|name| name.to_bytes());
                if name == Some(FILES.paused.as_bytes())
                    && let Some(sender) = self.watched().get(&event.wd())
                {
                    let exists = !event.events().contains(ReadFlags::DELETE);
                    let _ = sender.send(exists);
                }
            }
            ready.clear_ready();
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PauseChanges {
    /// Waits for the next change. Returns `None` if there is none any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub(crate) async fn next(&mut self) -> Option<bool> {
        self.changes.recv().await
    }
}

impl Drop for PauseChanges {
    fn drop(&mut self) {
        self.changes.close();
        let mut watched = self.watcher.watched();
        // A later watch of the same directory has the same descriptor, and an open receiver.
        let sender = watched.get(&self.descriptor);
        if sender.is_some_and(UnboundedSender::is_closed) {
            watched.remove(&self.descriptor);
            let inotify = self.watcher.inotify.get_ref();
            // Fails if the directory has been removed.
            let _ = inotify::remove_watch(inotify, self.descriptor);
        }
    }
}
