//! The root file system and other trees, as detached mounts.

use super::resolve::open_inside;
use crate::error::{During, Failure, SandboxError};
use crate::spec::Rootfs;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Attaches the detached mount `tree` on top of `target`.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// A detached copy of the mount at `source`, showing only what is at and below it.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(source, "", flags)
}

/// A new detached mount of the file system `kind`; options without a value are flags.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).during(|| format!("open file system type `{kind}`"))?;
    // What /proc/mounts shows as the source.
    if !options.iter().any(|(key, _)| *key == "source") {
        fsconfig_set_string(&context, "source", kind).during(|| format!("name the file system {kind}"))?;
    }
    for (key, value) in options {
        set(&context, key, value).during(|| format!("option `{key}={value}` of {kind}"))?;
    }
    finish(&context, kind, attributes)
}

fn set(context: &OwnedFd, key: &str, value: &str) -> Result<(), Errno> {
    if value.is_empty() { fsconfig_set_flag(context, key) } else { fsconfig_set_string(context, key, value) }
}

fn finish(context: &OwnedFd, kind: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    fsconfig_create(context).during(|| match kernel_message(context) {
        Some(message) => format!("mount {kind}: {message}"),
        None => format!("mount {kind}"),
    })?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).during(|| format!("mount {kind}"))
}

/// The kernel's own words on why a file system context was refused.
fn kernel_message(context: &OwnedFd) -> Option<String> {
    let mut buffer = [0; 512];
    let length = rustix::io::read(context, &mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
}

/// The root file system as a detached mount.
pub(crate) fn mount_root(root: &Rootfs) -> Result<OwnedFd, Failure> {
    match root {
        Rootfs::Overlay { lower, upper, work, volatile, userxattr } => {
            let writable = Writable { upper, work, volatile: *volatile, userxattr: *userxattr };
            overlay(lower, Some(&writable))
        }
        Rootfs::ReadOnlyOverlay { lower } => overlay(lower, None),
        Rootfs::Directory(path) => bind(path),
    }
}

/// The writable part of an overlay.
pub(crate) struct Writable<'spec> {
    pub(crate) upper: &'spec Path,
    pub(crate) work: &'spec Path,
    pub(crate) volatile: bool,
    pub(crate) userxattr: bool,
}

/// Lays directories over each other, the topmost first. One read-only directory alone becomes a read-only bind, since
/// overlayfs wants two.
pub(crate) fn overlay(lower: &[PathBuf], writable: Option<&Writable<'_>>) -> Result<OwnedFd, Failure> {
    match (lower, writable) {
        ([], _) => {
            return Err(Failure::Refused("an overlay needs a lower directory".to_owned()));
        }
        ([only], None) => {
            let tree = bind(only)?;
            let readonly = xbuild_sys::MountFlags { readonly: true, ..Default::default() };
            xbuild_sys::set_mount_flags(tree.as_fd(), readonly, false)
                .during(|| format!("protect `{}`", only.display()))?;
            return Ok(tree);
        }
        _ => {}
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).during(|| "open overlayfs".to_owned())?;
    // Renamed directories and metadata-only copies would put names and sizes into attributes that only this kernel
    // understands; a layer must hold plain files. No index: hard links of lower files break on write, as for BuildKit.
    let userxattr = writable.is_some_and(|writable| writable.userxattr) || !may_use_trusted(lower);
    // With `userxattr` directories are never renamed in this way, and saying so is refused.
    let redirect = if userxattr { ("userxattr", "") } else { ("redirect_dir", "off") };
    for (key, value) in [redirect, ("metacopy", "off"), ("index", "off")] {
        set(&context, key, value).during(|| format!("overlay option `{key}={value}`"))?;
    }
    set_lower(&context, lower)?;
    if let Some(writable) = writable {
        if writable.volatile {
            set(&context, "volatile", "").during(|| "overlay option `volatile`".to_owned())?;
        }
        for (key, path) in [("upperdir", writable.upper), ("workdir", writable.work)] {
            fsconfig_set_string(&context, key, path).during(|| format!("overlay {key} `{}`", path.display()))?;
        }
    }
    finish(&context, "overlay", MountAttrFlags::empty())
}

/// True if overlayfs may keep its marks where only the machine's root can; else they are in attributes of the user, also
/// those of directories that are only read.
fn may_use_trusted(lower: &[PathBuf]) -> bool {
    let probe = |path: &PathBuf| rustix::fs::removexattr(path.as_path(), "trusted.overlay.probe");
    lower.first().map(probe) != Some(Err(Errno::PERM))
}

/// Tries an overlay of new directories in `scratch`, without attaching it anywhere.
///
/// # Errors
/// Why the kernel does not make one here.
pub fn try_overlay(scratch: &Path) -> Result<(), SandboxError> {
    let [lower, other, upper, work] = ["lower", "other", "upper", "work"].map(|name| scratch.join(name));
    for directory in [&lower, &other, &upper, &work] {
        let step = || format!("make `{}`", directory.display());
        rustix::fs::mkdir(directory.as_path(), Mode::from_raw_mode(0o700)).during(step)?;
    }
    let writable = Writable { upper: &upper, work: &work, volatile: true, userxattr: false };
    let attempt = || overlay(&[lower, other], Some(&writable)).map(drop);
    Ok(super::namespaces::with_own_mounts(attempt).during(|| "make a mount namespace".to_owned())??)
}

/// `lowerdir+` takes one directory a time, so neither a page nor escaping of `:` limits the list. Linux 6.5 (6.7 with
/// these semantics); before it the joined string.
fn set_lower(context: &OwnedFd, lower: &[PathBuf]) -> Result<(), Failure> {
    for (index, path) in lower.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", path.as_path()) {
            Ok(()) => {}
            Err(Errno::INVAL) if index == 0 => return set_joined_lower(context, lower),
            Err(error) => {
                return Err(error).during(|| format!("overlay lower directory `{}`", path.display()));
            }
        }
    }
    Ok(())
}

fn set_joined_lower(context: &OwnedFd, lower: &[PathBuf]) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStrExt;
    let mut joined = Vec::new();
    for path in lower {
        if !joined.is_empty() {
            joined.push(b':');
        }
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\' | b',') {
                joined.push(b'\\');
            }
            joined.push(byte);
        }
    }
    fsconfig_set_string(context, "lowerdir", joined).during(|| format!("{} overlay lower directories", lower.len()))
}

/// One directory of the host as a detached mount.
fn bind(path: &Path) -> Result<OwnedFd, Failure> {
    let source = open_host(path)?;
    clone_tree(source.as_fd(), false).during(|| format!("bind `{}`", path.display()))
}

/// Opens a host path that the engine chose.
pub(crate) fn open_host(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open `{}`", path.display()))
}

/// Opens `selector` inside `source`, naming the selector when it is not there.
pub(crate) fn select(source: BorrowedFd<'_>, selector: &str) -> Result<OwnedFd, Failure> {
    open_inside(source, selector).during(|| format!("mount source `{selector}`"))
}
