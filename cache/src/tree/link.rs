//! Hard links: sharing inodes with immutable trees, and keeping those of the source.

use super::dir::open_beneath;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Identity of a file of a source: which of its diff directories, device, inode.
pub(crate) type FileId = (usize, u64, u64);

/// Number of a copy and of a diff directory of its source.
type Owner = (u32, usize);

/// Which inodes of other trees a diff shares already.
///
/// A second copy of the same file must not become a second name of the same inode, or the layer's reader would take the two
/// for hard links. So an inode is shared by one copy only, and there from one diff directory of the source only.
#[derive(Debug)]
pub(crate) struct Links {
    possible: AtomicBool,
    copies: AtomicU32,
    /// By device and inode: which copy shares it, and from which diff directory.
    shared: [Mutex<HashMap<(u64, u64), Owner>>; 16],
}

impl Links {
    pub(crate) fn new(possible: bool) -> Links {
        Links { possible: AtomicBool::new(possible), copies: AtomicU32::new(0), shared: Default::default() }
    }

    /// A number for the next copy.
    pub(crate) fn next_copy(&self) -> u32 {
        self.copies.fetch_add(1, Ordering::Relaxed)
    }

    /// Links `from` to `to` if the inode may be shared; false if it has to be copied.
    pub(crate) fn share(
        &self,
        copy: u32,
        (part, dev, ino): FileId,
        from: (BorrowedFd<'_>, &OsStr),
        to: (BorrowedFd<'_>, &OsStr),
    ) -> rustix::io::Result<bool> {
        if !self.possible.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let shard = &self.shared[usize::try_from(ino % 16).unwrap_or(0)];
        if *lock(shard).entry((dev, ino)).or_insert((copy, part)) != (copy, part) {
            return Ok(false);
        }
        match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {
                self.possible.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(Errno::MLINK) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Where the first name of each hard-linked file of one source went.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    names: Mutex<HashMap<FileId, Arc<Mutex<Option<PathBuf>>>>>,
}

impl Groups {
    /// The place for the group's first name; its lock is held while the file is made.
    pub(crate) fn slot(&self, id: FileId) -> Arc<Mutex<Option<PathBuf>>> {
        Arc::clone(lock(&self.names).entry(id).or_default())
    }
}

/// Links the file at `first`, a path of directories that we made, to a new name. False if that cannot be.
pub(crate) fn link_within(
    root: BorrowedFd<'_>,
    first: &Path,
    to: (BorrowedFd<'_>, &OsStr),
) -> rustix::io::Result<bool> {
    let Some(name) = first.file_name() else {
        return Ok(false);
    };
    let opened;
    let holder = match first.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => {
            opened = open_beneath(root, parent)?;
            std::os::fd::AsFd::as_fd(&opened)
        }
        None => root,
    };
    match rustix::fs::linkat(holder, name, to.0, to.1, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
