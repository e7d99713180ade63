//! Owners of files in the store of a user.
//!
//! A user's files can belong to those users only that his namespace has, and without one to nobody but him. An owner that
//! the kernel does not take is written down beside the file, in the attribute `user.xbuild.owner`: user and group, in
//! little endian. A file of the user's own that has none belongs to 0:0. Links, pipes and devices take no such attributes:
//! they are shown as their directory's owner's.
//!
//! Overlayfs copies the attribute with its file. What a process does inside a step is the kernel's affair, not ours.

use super::dir::{Dir, MAX_DEPTH, list, open_dir, xattr};
use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Meta};
use super::view::View;
use super::writer::Ids;
use rustix::fs::{AtFlags, Gid, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const OWNER: &str = "user.xbuild.owner";

/// Sets the owner of an open file or directory, or writes it down.
pub(crate) fn set(fd: BorrowedFd<'_>, owner: Ids) -> rustix::io::Result<()> {
    let (uid, gid) = numbers(owner)?;
    match rustix::fs::fchown(fd, Some(uid), Some(gid)) {
        Err(Errno::INVAL | Errno::PERM) if is_a_users(fd) => write_down(fd, owner),
        Ok(()) if is_a_users(fd) => match rustix::fs::fremovexattr(fd, OWNER) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
        },
        answer => answer,
    }
}

/// Gives what a step made to the user who ran it, where the kernel knows one user only: all that is in the diff directory
/// `diff` and not in `base`.
///
/// # Errors
/// The directory cannot be read, or the file system takes no attributes.
pub fn claim(base: &View, diff: &Path, uid: u32, gid: u32) -> Result<()> {
    let root = super::dir::open_root(diff)?;
    claim_in(Some(base.root()), root.as_fd(), Ids { uid, gid }, diff, 0)
}

fn claim_in(base: Option<&Dir>, diff: BorrowedFd<'_>, owner: Ids, path: &Path, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(TreeError::unfit(path, "nested too deeply"));
    }
    let mut names = Vec::new();
    list(diff, |name, _| names.push(name.to_os_string())).context("list", path)?;
    for name in names {
        let at = path.join(&name);
        let below = base.map(|base| base.stat(&name)).transpose().context("look up", &at)?.flatten();
        let stat = rustix::fs::statat(diff, &name, AtFlags::SYMLINK_NOFOLLOW).context("stat", &at)?;
        let meta = Meta::of(&stat);
        if below.is_none() && matches!(meta.kind, Kind::File | Kind::Dir) {
            // Nothing changes here any more, so it is no link.
            let file = path_of(diff, &name);
            rustix::fs::lsetxattr(file, OWNER, &encode(owner), XattrFlags::empty()).context("set owner of", &at)?;
        }
        if meta.is_dir() {
            let dir = open_dir(diff, &name).context("open", &at)?;
            let base = base.map(|base| base.child(&name)).transpose().context("open", &at)?.flatten();
            claim_in(base.as_ref(), dir.as_fd(), owner, &at, depth + 1)?;
        }
    }
    Ok(())
}

/// Sets the owner of a link or special file. One that the kernel does not take is lost.
pub(crate) fn set_node(dir: BorrowedFd<'_>, name: &OsStr, owner: Ids) -> rustix::io::Result<()> {
    let (uid, gid) = numbers(owner)?;
    match rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::INVAL | Errno::PERM) if is_a_users(dir) => Ok(()),
        answer => answer,
    }
}

/// Sets the owner of a directory of the store, or writes it down.
///
/// # Errors
/// It is not there, or the file system refuses both.
pub fn set_owner(directory: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    let directory = std::fs::File::open(directory)?;
    Ok(set(directory.as_fd(), Ids { uid, gid })?)
}

fn numbers(owner: Ids) -> rustix::io::Result<(Uid, Gid)> {
    // 2^32-1 means "leave it" to the kernel and is no owner.
    if owner.uid == u32::MAX || owner.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    Ok((Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
}

/// Whether this process is not the machine's root: the store has a user's marks then, too.
pub(crate) fn is_a_users(fd: BorrowedFd<'_>) -> bool {
    static USERS: OnceLock<bool> = OnceLock::new();
    *USERS.get_or_init(|| rustix::fs::fremovexattr(fd, "trusted.overlay.probe") == Err(Errno::PERM))
}

fn write_down(fd: BorrowedFd<'_>, owner: Ids) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(fd, OWNER, &encode(owner), XattrFlags::empty())
}

fn encode(owner: Ids) -> [u8; 8] {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&owner.uid.to_le_bytes());
    value[4..].copy_from_slice(&owner.gid.to_le_bytes());
    value
}

/// A path for calls that take no descriptor beside a name.
fn path_of(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    PathBuf::from(OsStr::from_bytes(&path))
}

/// Puts the owner that was written down for an open file into its attributes.
pub(crate) fn read(fd: BorrowedFd<'_>, meta: &mut Meta) -> rustix::io::Result<()> {
    if is_own(meta) {
        give(meta, &xattr(fd, OWNER)?.unwrap_or_default());
    }
    Ok(())
}

/// The same for a name of a directory.
pub(crate) fn read_at(dir: BorrowedFd<'_>, name: &OsStr, meta: &mut Meta) -> rustix::io::Result<()> {
    if !is_own(meta) {
        return Ok(());
    }
    if !matches!(meta.kind, Kind::File | Kind::Dir) {
        give(meta, &xattr(dir, OWNER)?.unwrap_or_default());
        return Ok(());
    }
    let mut value = [0; 8];
    match rustix::fs::lgetxattr(path_of(dir, name), OWNER, &mut value[..]) {
        Ok(length) => give(meta, &value[..length]),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::NOENT) => give(meta, &[]),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether the file belongs to this process, so that it stands for others'.
fn is_own(meta: &Meta) -> bool {
    static OWN: OnceLock<(u32, u32)> = OnceLock::new();
    let own = OWN.get_or_init(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    (meta.uid, meta.gid) == *own
}

fn give(meta: &mut Meta, value: &[u8]) {
    let number = |at: usize| value.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    (meta.uid, meta.gid) = (number(0).unwrap_or(0), number(4).unwrap_or(0));
}
