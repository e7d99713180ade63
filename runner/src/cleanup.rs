//! Taking mount points out of the upper directory again.
//!
//! Runs after the sandbox is gone, so nothing moves meanwhile, but what lies there was made by the step: every path is
//! opened one real directory at a time and never through a link (CVE-2024-23652).

use crate::error::SandboxError;
use crate::protocol::{Leftovers, Stub, TouchedParent};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fgetxattr, fstat, futimens,
    openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Removes stubs that are still empty and of the kind that was made, then directories that were copied up only to hold
/// them. Times of the directories they lay in stay as the step left them.
pub(crate) fn remove_stubs(root: &Path, leftovers: &Leftovers) -> Result<(), SandboxError> {
    if leftovers.stubs.is_empty() {
        return Ok(());
    }
    let failed = |error: Errno| SandboxError::Setup {
        step: format!("remove mount points from `{}`", root.display()),
        source: error.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty()).map_err(failed)?;
    // Made from the outside in, so removed from the inside out.
    for stub in leftovers.stubs.iter().rev() {
        remove_stub(&root, stub).map_err(failed)?;
    }
    let mut parents: Vec<&TouchedParent> = leftovers.parents.iter().filter(|parent| !parent.path.is_empty()).collect();
    parents.sort_by_key(|parent| std::cmp::Reverse(parent.path.len()));
    for parent in parents {
        remove_copied_parent(&root, parent).map_err(failed)?;
    }
    Ok(())
}

fn remove_stub(root: &OwnedFd, stub: &Stub) -> Result<(), Errno> {
    let Some((parent, name)) = open_parent(root, &stub.path)? else {
        return Ok(());
    };
    let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if stub.directory => remove_keeping_times(parent.as_fd(), name, AtFlags::REMOVEDIR),
        FileType::RegularFile if !stub.directory && stat.st_size == 0 => {
            remove_keeping_times(parent.as_fd(), name, AtFlags::empty())
        }
        _ => Ok(()),
    }
}

/// Removes a directory from the upper that overlayfs copied up because a stub was to be made in it, when it says
/// nothing that the directory below does not say. Overlay marks copies with an origin, and directories that replace
/// something as opaque.
fn remove_copied_parent(root: &OwnedFd, touched: &TouchedParent) -> Result<(), Errno> {
    let Some((parent, name)) = open_parent(root, &touched.path)? else {
        return Ok(());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(&parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let stat = fstat(&directory)?;
    let same = stat.st_mode == touched.mode
        && stat.st_uid == touched.uid
        && stat.st_gid == touched.gid
        && (stat.st_mtime as i64, stat.st_mtime_nsec as i64) == touched.mtime;
    if same && is_plain_copy(&directory) && is_empty(&directory)? {
        remove_keeping_times(parent.as_fd(), name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn is_plain_copy(directory: &OwnedFd) -> bool {
    let has = |name: &str| {
        let mut value = [0; 256];
        fgetxattr(directory, name, &mut value).is_ok()
    };
    let copied = has("trusted.overlay.origin") || has("user.overlay.origin");
    copied && !has("trusted.overlay.opaque") && !has("user.overlay.opaque")
}

fn is_empty(directory: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove_keeping_times(parent: BorrowedFd<'_>, name: &str, flags: AtFlags) -> Result<(), Errno> {
    let readable = openat(parent, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let before = fstat(&readable)?;
    match unlinkat(parent, name, flags) {
        Ok(()) => futimens(&readable, &times_of(&before)),
        // The step put something there: then it belongs to the layer.
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Opens the directory that holds the last component; `None` when the way there is not made of real directories.
fn open_parent<'path>(root: &OwnedFd, path: &'path [String]) -> Result<Option<(OwnedFd, &'path str)>, Errno> {
    let Some((name, above)) = path.split_last() else {
        return Ok(None);
    };
    let mut at = root.try_clone().map_err(|_| Errno::MFILE)?;
    for component in above {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        at = match openat2(&at, component.as_str(), flags, Mode::empty(), resolve) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(Some((at, name)))
}
