use crate::{At, StoreError};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An exclusive lock between threads and processes, held until dropped; ends with the process that holds it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock at `path` if nobody has it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>, StoreError> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).read(true).open(path);
            let file = file.at("open the lock", path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno).at("lock", path),
            }
            // Who held it before may have removed the name; then the lock is on a file nobody else can find.
            let named = std::fs::symlink_metadata(path).map(|m| m.ino()).ok();
            if named == Some(file.metadata().at("look at", path)?.ino()) {
                return Ok(Some(Self { file, path: path.to_owned() }));
            }
        }
    }

    /// Takes the lock at `path`, waiting until it is free or `stop` says so.
    pub(crate) fn take(path: &Path, stop: &dyn Fn() -> bool) -> Result<Option<Self>, StoreError> {
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            if stop() {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// The locked file, for a note to others.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Unlink before unlock, so that nobody locks a name that is about to go. Failure leaves an empty file.
        let _ = std::fs::remove_file(&self.path);
    }
}
