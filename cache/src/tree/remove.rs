//! Removing trees without ever following a link.

use super::dir::open_dir;
use super::error::{Context, Result};
use super::meta::Kind;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Removes `name` of `parent`, whatever it is, with everything below it. Absence is no error.
///
/// Only descriptors and single names are used, so a directory exchanged for a link in the meantime is removed as a link.
/// Works on trees of any depth with a bounded number of descriptors.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    remove(parent, name).context("remove", Path::new(name))
}

/// Moves `name` of `parent` to `trash_name` of `trash`, where nothing looks for it. Takes a moment, whatever its size.
pub fn move_away(parent: BorrowedFd<'_>, name: &OsStr, trash: BorrowedFd<'_>, trash_name: &OsStr) -> Result<()> {
    rustix::fs::renameat(parent, name, trash, trash_name).context("move away", Path::new(name))
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    let Some(top) = enter(parent, name)? else {
        return unlink(parent, name).map(drop);
    };
    let mut stack: Vec<(OwnedFd, OsString, Vec<OsString>)> = vec![];
    let mut current = (top, name.to_os_string(), Vec::new());
    current.2 = empty(current.0.as_fd())?;
    loop {
        if let Some(next) = current.2.pop() {
            if let Some(fd) = enter(current.0.as_fd(), &next)? {
                if stack.len() >= FLATTEN_AT {
                    // Hang it higher instead of going deeper.
                    flatten(stack[0].0.as_fd(), current.0.as_fd(), &next)?;
                    continue;
                }
                let below = empty(fd.as_fd())?;
                stack.push(std::mem::replace(&mut current, (fd, next, below)));
            } else {
                unlink(current.0.as_fd(), &next)?;
            }
            continue;
        }
        let holder = stack.last().map_or(parent, |(fd, _, _)| fd.as_fd());
        match rustix::fs::unlinkat(holder, &current.1, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                current.2 = empty(current.0.as_fd())?;
                continue;
            }
            Err(e) => return Err(e),
        }
        match stack.pop() {
            Some(up) => current = up,
            None => return Ok(()),
        }
    }
}

/// Depth from which on directories are moved up before they are emptied, to bound the descriptors in use.
const FLATTEN_AT: usize = 128;

fn flatten(top: BorrowedFd<'_>, holder: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    for n in 0.. {
        let new = format!(".removing-{n}");
        match rustix::fs::renameat_with(holder, name, top, new.as_str(), rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a directory, making it accessible first if need be. None for anything else.
fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
    match open_dir(parent, name) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, 0o700.into(), AtFlags::empty())?;
            open_dir(parent, name).map(Some)
        }
        Err(e) => Err(e),
    }
}

/// Unlinks; false if it is a directory.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Unlinks everything that is no directory and returns the names that are left.
fn empty(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<OsString>> {
    let mut left = Vec::new();
    let mut files = Vec::new();
    let listed = super::dir::list(dir, |name, kind| match kind {
        Some(Kind::Dir) | None => left.push(name.to_os_string()),
        Some(_) => files.push(name.to_os_string()),
    });
    match listed {
        // Somebody else removed it meanwhile.
        Err(Errno::NOENT) => {}
        other => other?,
    }
    for name in files {
        if !unlink(dir, &name)? {
            left.push(name);
        }
    }
    Ok(left)
}
