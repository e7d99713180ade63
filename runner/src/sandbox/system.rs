//! The file systems every process expects: `/proc`, `/dev`, `/sys`, and what is hidden of them.

use super::resolve::{Root, type_of};
use super::rootfs::{attach, clone_tree, new_filesystem, open_host};
use super::staging::Staging;
use super::{cgroups, nodes, sysctl};
use crate::error::{During, Failure};
use crate::spec::{Privileges, Spec};
use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, ResolveFlags, access, makedev, mkdirat, openat, openat2, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xbuild_sys::MountFlags;

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

pub(crate) const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Files of the kernel that docker hides, below `/proc` and `/sys`.
pub(crate) const MASKED_PROC: [&str; 11] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
    "driver",
];
pub(crate) const MASKED_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];

/// Files of the kernel that docker protects, below `/proc`.
pub(crate) const READONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// The kernel file systems, mounted in the root.
pub(crate) struct System {
    proc: OwnedFd,
    sys: OwnedFd,
    pts: OwnedFd,
}

/// Mounts `/proc`, `/dev` and `/sys`.
///
/// `shm` takes the place of a `/dev/shm` of its own.
pub(crate) fn mount_system(
    root: &Root,
    spec: &Spec,
    privileges: &Privileges,
    shm: Option<OwnedFd>,
) -> Result<System, Failure> {
    let (proc, _) = own_or_hosts("proc", MountAttrFlags::empty())?;
    attach_system(root, "proc", proc.as_fd())?;
    let pts = mount_dev(root, spec, shm)?;
    let readonly = if privileges.masked { RDONLY } else { MountAttrFlags::empty() };
    let (sys, own) = own_or_hosts("sysfs", readonly)?;
    attach_system(root, "sys", sys.as_fd())?;
    if own {
        cgroups::mount(sys.as_fd(), readonly, spec)?;
    }
    sysctl::set(proc.as_fd(), spec)?;
    Ok(System { proc, sys, pts })
}

/// A file system of the kernel's; the host's, with what is mounted there, where a user namespace may not mount one: that of a
/// network that is not the namespace's own, or where a container hides parts of it. Whether it is an own one.
fn own_or_hosts(kind: &str, more: MountAttrFlags) -> Result<(OwnedFd, bool), Failure> {
    match new_filesystem(kind, &[], NOSUID | NODEV | NOEXEC | more) {
        Err(Failure::Setup { errno, .. }) if errno == Errno::PERM.raw_os_error() => {}
        answer => return answer.map(|tree| (tree, true)),
    }
    let path = if kind == "sysfs" { "/sys" } else { "/proc" };
    let step = || format!("show the host's `{path}`");
    let host = open_host(std::path::Path::new(path))?;
    let tree = clone_tree(host.as_fd(), true).during(step)?;
    if more.contains(RDONLY) {
        let flags = MountFlags { readonly: true, ..MountFlags::default() };
        xbuild_sys::set_mount_flags(tree.as_fd(), flags, true).during(step)?;
    }
    Ok((tree, false))
}

impl System {
    /// The file system of terminals.
    pub(crate) fn pts(&self) -> BorrowedFd<'_> {
        self.pts.as_fd()
    }
}

/// Attaches at a directory right below the root. A link there is refused: everything that is later masked or read by
/// name would go where the image pointed (CVE-2019-16884, CVE-2023-28642).
fn attach_system(root: &Root, name: &str, mount: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match openat(root.fd(), name, flags, Mode::empty()) {
        Err(Errno::NOENT) => mkdirat(root.fd(), name, Mode::from_raw_mode(0o755))
            .and_then(|()| openat(root.fd(), name, flags, Mode::empty())),
        answer => answer,
    };
    let target = target.during(|| format!("open `/{name}`"))?;
    match type_of(target.as_fd()).during(|| format!("look at `/{name}`"))? {
        FileType::Directory => attach(mount, target.as_fd()).during(|| format!("attach `/{name}`")),
        _ => {
            Err(Failure::Refused(format!("`/{name}` of the image is not a directory, so nothing can be mounted there")))
        }
    }
}

/// Mounts `/dev` and what lies below it; gives the file system of terminals.
fn mount_dev(root: &Root, spec: &Spec, shm: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    let attributes = NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let dev = new_filesystem("tmpfs", &[("mode", "0755"), ("size", "65536k")], attributes)?;
    fill_dev(dev.as_fd()).during(|| "fill `/dev`".to_owned())?;
    for node in &spec.devices {
        nodes::make(dev.as_fd(), node).during(|| format!("make the device `/dev/{}`", node.path))?;
    }
    attach_system(root, "dev", dev.as_fd())?;
    let pts = terminals()?;
    let size = spec.shm_size.unwrap_or(64 << 20).to_string();
    let shm = match (shm, spec.shm_size) {
        (Some(shared), _) => Some(shared),
        (None, Some(0)) => {
            unlinkat(&dev, "shm", AtFlags::REMOVEDIR).during(|| "leave `/dev/shm` out".to_owned())?;
            None
        }
        (None, _) => {
            let options = [("source", "shm"), ("mode", "1777"), ("size", size.as_str())];
            Some(new_filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC)?)
        }
    };
    let mqueue = new_filesystem("mqueue", &[], NOSUID | NODEV | NOEXEC)?;
    let mounts = [("pts", Some(&pts)), ("shm", shm.as_ref()), ("mqueue", Some(&mqueue))];
    for (name, mount) in mounts.into_iter().filter_map(|(name, mount)| Some((name, mount?))) {
        let target = openat(&dev, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .during(|| format!("open `/dev/{name}`"))?;
        attach(mount.as_fd(), target.as_fd()).during(|| format!("attach `/dev/{name}`"))?;
    }
    Ok(pts)
}

/// A file system of terminals. They belong to group 5 where there is one.
fn terminals() -> Result<OwnedFd, Failure> {
    let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    match new_filesystem("devpts", &options, NOSUID | NOEXEC) {
        Err(Failure::Setup { errno, .. }) if errno == Errno::INVAL.raw_os_error() => {
            new_filesystem("devpts", &options[..3], NOSUID | NOEXEC)
        }
        answer => answer,
    }
}

fn fill_dev(dev: BorrowedFd<'_>) -> Result<(), Errno> {
    nodes::make_usual(dev)?;
    for (name, target) in LINKS {
        // Not every kernel has it.
        if name != "core" || access(target, Access::EXISTS).is_ok() {
            symlinkat(target, dev, name)?;
        }
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

/// Hides and protects what docker hides and protects. By descriptor from the file systems mounted here, so nothing the
/// image or another sandbox does can turn a mask elsewhere.
pub(crate) fn mask(system: &System, staging: &mut Staging) -> Result<(), Failure> {
    let null = verified_null()?;
    let empty = staging.directory(0o555)?;
    let proc = MASKED_PROC.iter().map(|path| (system.proc.as_fd(), *path));
    let sys = MASKED_SYS.iter().map(|path| (system.sys.as_fd(), *path));
    for (tree, path) in proc.chain(sys) {
        hide(tree, path, null.as_fd(), empty.as_fd()).during(|| format!("hide `{path}` of the kernel"))?;
    }
    for path in READONLY_PROC {
        protect(system.proc.as_fd(), path).during(|| format!("protect `/proc/{path}`"))?;
    }
    Ok(())
}

fn hide(tree: BorrowedFd<'_>, path: &str, null: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> Result<(), Errno> {
    let target = match below(tree, path) {
        Ok(Some(target)) => target,
        // Not there, or something is mounted over it already: the container that this one runs in hides it, too.
        Ok(None) | Err(Errno::XDEV) => return Ok(()),
        Err(error) => return Err(error),
    };
    let directory = type_of(target.as_fd())? == FileType::Directory;
    let cover = clone_tree(if directory { empty } else { null }, false)?;
    if directory {
        set_flags(&cover, MountFlags { readonly: true, nosuid: true, nodev: true, noexec: true })?;
    }
    attach(cover.as_fd(), target.as_fd())
}

fn protect(tree: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let (target, mounted) = match below(tree, path) {
        Ok(Some(target)) => (target, false),
        Ok(None) => return Ok(()),
        // A mount of the container that this one runs in, with what that has below it.
        Err(Errno::XDEV) => {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            (openat2(tree, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?, true)
        }
        Err(error) => return Err(error),
    };
    let copy = clone_tree(target.as_fd(), mounted)?;
    let flags = MountFlags { readonly: true, ..MountFlags::default() };
    xbuild_sys::set_mount_flags(copy.as_fd(), flags, mounted)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    attach(copy.as_fd(), target.as_fd())
}

fn set_flags(tree: &OwnedFd, flags: MountFlags) -> Result<(), Errno> {
    xbuild_sys::set_mount_flags(tree.as_fd(), flags, false)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Opens `path` below a kernel file system, without leaving it; `None` when this kernel has no such file.
pub(crate) fn below(tree: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match openat2(tree, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The host's `/dev/null`, which must be what it says: the character device 1:3 (CVE-2025-31133).
pub(crate) fn verified_null() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).during(|| "open `/dev/null`".to_owned())?;
    let stat = rustix::fs::fstat(&null).during(|| "look at `/dev/null`".to_owned())?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if device { Ok(null) } else { Err(Failure::Refused("`/dev/null` of the host is not the null device".to_owned())) }
}
