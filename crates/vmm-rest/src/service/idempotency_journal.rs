//! The file that keeps the responses to requests with an idempotency key over a restart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use vmm_protocol::sync_parent_directory;

/// The entries after which the file is written again without those that are too old.
const MAX_APPENDED: usize = 16_384;

/// A response, one line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JournalEntry {
    pub(crate) key: String,
    pub(crate) fingerprint: u64,
    /// When the request began.
    pub(crate) at: SystemTime,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// A file to which responses are appended.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    lifetime: Duration,
    appended: usize,
}

impl Journal {
    /// Opens or creates the file, and returns its entries that are younger than `lifetime`, oldest
    /// first.
    pub(crate) fn open(path: &Path, lifetime: Duration) -> io::Result<(Self, Vec<JournalEntry>)> {
        let entries = read(path, lifetime)?;
        let journal = Self {
            path: path.to_owned(),
            file: rewrite(path, &entries)?,
            lifetime,
            appended: 0,
        };
        Ok((journal, entries))
    }

    /// Appends entries. They are on disk when this returns.
    fn append(&mut self, entries: &[JournalEntry]) -> io::Result<()> {
        if self.appended >= MAX_APPENDED {
            self.file = rewrite(&self.path, &read(&self.path, self.lifetime)?)?;
            self.appended = 0;
        }
        self.appended += entries.len();
        for entry in entries {
            self.file.write_all(&line(entry)?)?;
        }
        self.file.sync_data()
    }
}

/// A journal that concurrent requests append to, with one thread and one sync for all that wait.
#[derive(Debug)]
pub(crate) struct SharedJournal {
    journal: Arc<tokio::sync::Mutex<Journal>>,
    /// What the next holder of the journal appends.
    waiting: Mutex<Vec<JournalEntry>>,
}

impl SharedJournal {
    pub(crate) fn new(journal: Journal) -> Self {
        Self {
            journal: Arc::new(tokio::sync::Mutex::new(journal)),
            waiting: Mutex::default(),
        }
    }

    /// Appends an entry. It is on disk when this returns, unless a call has failed: only the call
    /// that wrote the entry returns the error.
    pub(crate) async fn append(&self, entry: JournalEntry) -> io::Result<()> {
        self.waiting().push(entry);
        let mut journal = Arc::clone(&self.journal).lock_owned().await;
        let entries = std::mem::take(&mut *self.waiting());
        if entries.is_empty() {
            return Ok(());
        }
        spawn_blocking(move || journal.append(&entries)).await?
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<JournalEntry>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn line(entry: &JournalEntry) -> io::Result<Vec<u8>> {
    // A crash can leave a part of the line before.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, entry)?;
    line.push(b'\n');
    Ok(line)
}

fn read(path: &Path, lifetime: Duration) -> io::Result<Vec<JournalEntry>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    parse(BufReader::new(file), SystemTime::now(), lifetime)
}

pub(crate) fn parse(
    text: impl BufRead,
    now: SystemTime,
    lifetime: Duration,
) -> io::Result<Vec<JournalEntry>> {
    let mut entries = Vec::new();
    for line in text.split(b'\n') {
        // A line that a crash has cut off was not acknowledged.
        let Ok(entry) = serde_json::from_slice::<JournalEntry>(&line?) else {
            continue;
        };
        // An entry of the future was written before the clock was set back.
        if now.duration_since(entry.at).unwrap_or_default() < lifetime {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Replaces the file, and returns it open for appending.
fn rewrite(path: &Path, entries: &[JournalEntry]) -> io::Result<File> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    for entry in entries {
        file.write_all(&line(entry)?)?;
    }
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // Without the new name, a power cut would lose all that is appended later.
    sync_parent_directory(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, at: SystemTime) -> JournalEntry {
        JournalEntry {
            key: key.to_owned(),
            fingerprint: 7,
            at,
            status: 201,
            headers: vec![("location".to_owned(), "/v1/boxes/b".to_owned())],
            body: "{}\n".to_owned(),
        }
    }

    #[test]
    fn entries_survive_a_crash_until_they_are_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let lifetime = Duration::from_secs(3600);
        let (mut journal, entries) = Journal::open(&path, lifetime).unwrap();
        assert_eq!(entries, []);
        let now = SystemTime::now();
        journal.append(&[entry("old", now - 2 * lifetime)]).unwrap();
        journal.append(&[entry("a", now)]).unwrap();
        journal.file.write_all(b"\n{\"key\": \"cut o").unwrap();
        let (mut journal, entries) = Journal::open(&path, lifetime).unwrap();
        assert_eq!(entries, [entry("a", now)]);
        journal.append(&[entry("b", now)]).unwrap();
        journal.appended = MAX_APPENDED;
        journal.append(&[entry("c", now)]).unwrap();
        let (_, entries) = Journal::open(&path, lifetime).unwrap();
        assert_eq!(entries, ["a", "b", "c"].map(|key| entry(key, now)));
    }
}
