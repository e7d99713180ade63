//! Device nodes below `/dev`. Root of a user namespace may make none, and shows those of the host instead.

use super::rootfs::{attach, clone_tree};
use crate::spec::DeviceNode;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Character devices that every process expects: name, major, minor.
pub(crate) const USUAL: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Directories below `/dev` that are looked into for a device.
const DEPTH: usize = 3;

/// Makes the usual nodes in `dev`.
pub(super) fn make_usual(dev: BorrowedFd<'_>) -> Result<(), Errno> {
    for (name, major, minor) in USUAL {
        let mode = Mode::from_raw_mode(0o666);
        match mknodat(dev, name, FileType::CharacterDevice, mode, makedev(major, minor)) {
            Err(Errno::PERM) => show(dev, name, &Path::new("/dev").join(name))?,
            made => made?,
        }
    }
    Ok(())
}

/// A node that the request asks for, with the directories above it.
pub(super) fn make(dev: BorrowedFd<'_>, node: &DeviceNode) -> Result<(), Errno> {
    let (above, name) = node.path.rsplit_once('/').unwrap_or(("", &node.path));
    if name.is_empty() || node.path.split('/').any(|part| matches!(part, ".." | ".")) {
        return Err(Errno::INVAL);
    }
    let mut at = dev.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    for part in above.split('/').filter(|part| !part.is_empty()) {
        match mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        at = openat(&at, part, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    }
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    match mknodat(&at, name, kind, Mode::from_raw_mode(node.mode & 0o7777), makedev(node.major, node.minor)) {
        // One of the usual nodes.
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::PERM) => {
            let same = Path::new("/dev").join(&node.path);
            let host = if is_node(&same, node) { Some(same) } else { find(Path::new("/dev"), node, DEPTH) };
            return show(at.as_fd(), name, &host.ok_or(Errno::NODEV)?);
        }
        made => made?,
    }
    let owner = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    chownat(&at, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
}

/// Mounts a node of the host's at a free name of `at`.
fn show(at: BorrowedFd<'_>, name: &str, host: &Path) -> Result<(), Errno> {
    let source = rustix::fs::open(host, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match openat(at, name, flags, Mode::from_raw_mode(0o666)) {
        // One of the usual nodes.
        Err(Errno::EXIST) => return Ok(()),
        target => target?,
    };
    attach(clone_tree(source.as_fd(), false)?.as_fd(), target.as_fd())
}

fn is_node(path: &Path, node: &DeviceNode) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|about| {
        let kind = about.file_type();
        let same_kind = if node.block { kind.is_block_device() } else { kind.is_char_device() };
        same_kind && about.rdev() == makedev(node.major, node.minor)
    })
}

/// The host's node with these numbers.
fn find(directory: &Path, node: &DeviceNode, depth: usize) -> Option<PathBuf> {
    let paths: Vec<PathBuf> = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    if let Some(found) = paths.iter().find(|path| is_node(path, node)) {
        return Some(found.clone());
    }
    let is_directory = |path: &&PathBuf| std::fs::symlink_metadata(path).is_ok_and(|about| about.is_dir());
    let below = || paths.iter().filter(is_directory).find_map(|path| find(path, node, depth - 1));
    if depth > 0 { below() } else { None }
}
