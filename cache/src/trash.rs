//! Things that lost their names, and whose bytes are freed off the build path.

use crate::tree::remove_tree;
use crate::{At, StoreError};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The trash of one process: a folder of the store, and a thread that empties it as long as the process lives. What is left
/// then is swept by another one.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    owner: String,
    counter: AtomicU64,
    janitor: Mutex<Option<Sender<PathBuf>>>,
    waiting: Arc<Waiting>,
}

/// Number of things that the janitor has not freed yet.
#[derive(Debug, Default)]
struct Waiting {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trash {
    pub(crate) fn new(folder: PathBuf, owner: &str) -> Trash {
        let owner = owner.to_owned();
        Trash { folder, owner, counter: AtomicU64::new(0), janitor: Mutex::default(), waiting: Arc::default() }
    }

    /// Takes a file or directory away from its name. Absence is no error.
    pub(crate) fn put(&self, path: &Path) -> Result<(), StoreError> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let to = self.folder.join(format!("{}-{n}", self.owner));
        match fs::rename(path, &to) {
            Ok(()) => {
                self.free_later(to);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).at("rename", path),
        }
    }

    /// Waits until all is freed, but not longer than this.
    pub(crate) fn settle(&self, patience: Duration) {
        let _ = self.waiting.changed.wait_timeout_while(self.waiting.lock(), patience, |count| *count > 0);
    }

    fn free_later(&self, path: PathBuf) {
        let mut janitor = self.janitor.lock().unwrap_or_else(PoisonError::into_inner);
        if janitor.is_none() {
            let (sender, things) = channel();
            let waiting = Arc::clone(&self.waiting);
            let started = std::thread::Builder::new().name("janitor".into()).spawn(move || free_all(&things, &waiting));
            // Without the thread it stays for the next sweep.
            if started.is_err() {
                return;
            }
            *janitor = Some(sender);
        }
        *self.waiting.lock() += 1;
        if janitor.as_ref().is_none_or(|janitor| janitor.send(path).is_err()) {
            *self.waiting.lock() -= 1;
        }
    }
}

fn free_all(things: &Receiver<PathBuf>, waiting: &Waiting) {
    for path in things {
        // What cannot be freed stays for the next sweep.
        let _ = free(&path);
        *waiting.lock() -= 1;
        waiting.changed.notify_all();
    }
}

/// Frees what is at `path`, a name that nobody else uses any more.
pub(crate) fn free(path: &Path) -> Result<(), StoreError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let folder = File::open(folder).at("open", folder)?;
    remove_tree(folder.as_fd(), name).map_err(std::io::Error::other).at("remove", path)
}
