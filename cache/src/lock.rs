use crate::{At, StoreError};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A lock between threads and processes, held until dropped; ends with the process that holds it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
    exclusive: bool,
}

impl FileLock {
    /// Takes the lock at `path` if nobody has it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::attempt(path, true)
    }

    /// Takes the lock at `path` together with others that share it, if nobody has it alone.
    pub(crate) fn try_share(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::attempt(path, false)
    }

    fn attempt(path: &Path, exclusive: bool) -> Result<Option<Self>, StoreError> {
        let operation = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        loop {
            let file = File::options().create(true).truncate(false).write(true).read(true).open(path);
            let file = file.at("open the lock", path)?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno).at("lock", path),
            }
            // Who held it before may have removed the name; then the lock is on a file nobody else can find.
            let named = std::fs::symlink_metadata(path).map(|m| m.ino()).ok();
            if named == Some(file.metadata().at("look at", path)?.ino()) {
                return Ok(Some(Self { file, path: path.to_owned(), exclusive }));
            }
        }
    }

    /// Tries `attempt` until it has the lock or `stop` says so.
    pub(crate) fn wait(
        attempt: impl Fn() -> Result<Option<Self>, StoreError>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, StoreError> {
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(lock) = attempt()? {
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
        // Unlink before unlock, so that nobody locks a name that is about to go. Failure leaves an empty file. A shared lock
        // may be others' too: its name stays.
        if self.exclusive {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
