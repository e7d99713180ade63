//! The mounts of a configuration, in its order, each made detached and attached below the root by descriptor.

use super::options::{Attributes, Options};
use crate::Propagation;
use crate::error::{During, Failure};
use crate::protocol::Leftovers;
use crate::sandbox::resolve::{Kind, Root, open_inside, type_of};
use crate::sandbox::rootfs::{attach, clone_tree, new_filesystem, open_host};
use crate::sandbox::{cgroups, system};
use crate::spec::CgroupSpec;
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, fstatfs, openat, statat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use xbuild_sys::MountChange;

const PROC_MAGIC: u64 = 0x9fa0;

/// Files of `/proc` that may be covered: what lxcfs and its like put there.
const COVERED: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "uptime",
    "net/dev",
    "sys/kernel/ns_last_pid",
];

/// A mount that is ready to be attached, or the recipe of one that has to be made in its place.
#[derive(Debug)]
pub(super) struct Prepared<'config> {
    mount: &'config Mount,
    options: Options,
    source: Option<OwnedFd>,
}

/// Takes hold of what binds show, while the mounts of the host are still as they were: a bind that is to be shared has
/// to belong to the same group.
pub(super) fn prepare<'config>(mounts: &'config [Mount], bundle: &Path) -> Result<Vec<Prepared<'config>>, Failure> {
    let one = |mount: &'config Mount| {
        let options = Options::parse(mount)?;
        let source = match options.bind {
            None => None,
            Some(recursive) => {
                let source = mount.source().as_ref().ok_or_else(|| named(mount, "has no source"))?;
                let opened = open_host(&bundle.join(source))?;
                Some(clone_tree(opened.as_fd(), recursive).during(|| format!("bind `{}`", source.display()))?)
            }
        };
        Ok(Prepared { mount, options, source })
    };
    mounts.iter().map(one).collect()
}

fn named(mount: &Mount, why: &str) -> Failure {
    Failure::Refused(format!("mounts: `{}` {why}", mount.destination().display()))
}

/// Everything a mount may depend on.
pub(super) struct Place<'a> {
    pub(super) root: &'a Root,
    pub(super) own_cgroups: bool,
    pub(super) cgroup: &'a CgroupSpec,
    /// What binds do that say nothing about it.
    pub(super) propagation: Propagation,
}

impl Place<'_> {
    pub(super) fn mount(&self, prepared: Prepared<'_>) -> Result<(), Failure> {
        let Prepared { mount, options, source } = prepared;
        let path = path_of(mount)?;
        let label = || format!("mount `{path}`");
        if let Some(tree) = source {
            let target = self.target(&tree, path)?;
            let (what, all) = self.propagation.everywhere().change();
            change(&tree, what, all).during(label)?;
            finish(&tree, &options).during(label)?;
            return attach(tree.as_fd(), target.as_fd()).during(label);
        }
        let kind = mount.typ().as_deref().unwrap_or("none");
        let target = self.directory(path, kind)?;
        if matches!(kind, "cgroup" | "cgroup2") {
            return self.cgroups(&options, &target).during_mount(path);
        }
        let tree = self.filesystem(mount, kind, &options, &target)?;
        attach(tree.as_fd(), target.as_fd()).during(label)?;
        if options.copy_up {
            super::copy_up::copy(target.as_fd(), tree.as_fd()).during(|| format!("fill `{path}`"))?;
        }
        // After everything that writes in it; `/dev` is filled later and protected at the end.
        let late = if path == "/dev" { without_readonly(options.own) } else { options.own };
        finish(&tree, &Options { own: late, ..options }).during(label)
    }

    /// The place of a file or directory that is bound. Only some names below `/proc` may be covered: whoever covers others
    /// hides from the runtime what it is about to protect.
    fn target(&self, tree: &OwnedFd, path: &str) -> Result<OwnedFd, Failure> {
        let kind = match type_of(tree.as_fd()).during(|| format!("look at the source of the mount `{path}`"))? {
            FileType::Directory => Kind::Directory,
            _ => Kind::File,
        };
        let target = self.root.mount_point(path, kind, &mut Leftovers::default())?;
        let on = fstatfs(&target).during(|| format!("look at `{path}`"))?;
        let known = path.strip_prefix("/proc/").is_some_and(|rest| COVERED.contains(&rest));
        // All of /proc may be another's.
        if on.f_type as u64 == PROC_MAGIC && !known && path != "/proc" {
            return Err(Failure::Refused(format!("`{path}` cannot be mounted because it is inside /proc")));
        }
        Ok(target)
    }

    fn directory(&self, path: &str, kind: &str) -> Result<OwnedFd, Failure> {
        // A link there would lead what is later protected by name elsewhere (CVE-2019-16884, CVE-2023-28642).
        if matches!(kind, "proc" | "sysfs") {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let name = path.trim_start_matches('/');
            if !name.contains('/')
                && let Ok(there) = openat(self.root.fd(), name, flags, Mode::empty())
                && type_of(there.as_fd()).during(|| format!("look at `{path}`"))? != FileType::Directory
            {
                return Err(Failure::Refused(format!(
                    "`{path}` is not a directory, so {kind} cannot be mounted there"
                )));
            }
        }
        let target = self.root.mount_point(path, Kind::Directory, &mut Leftovers::default())?;
        match type_of(target.as_fd()).during(|| format!("look at `{path}`"))? {
            FileType::Directory => Ok(target),
            _ => Err(Failure::Refused(format!("`{path}` is not a directory, so {kind} cannot be mounted there"))),
        }
    }

    fn filesystem(&self, mount: &Mount, kind: &str, options: &Options, target: &OwnedFd) -> Result<OwnedFd, Failure> {
        let source = mount.source().as_ref().and_then(|source| source.to_str()).unwrap_or(kind);
        let mut data: Vec<(&str, &str)> = vec![("source", source)];
        data.extend(options.data.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let mode = fstat(target).during(|| "look at a mount point".to_owned())?.st_mode & 0o7777;
        let mode = format!("{mode:o}");
        if kind == "tmpfs" && !options.data.iter().any(|(key, _)| key == "mode") {
            data.push(("mode", &mode));
        }
        if source.starts_with('/') && options.own.is_readonly() && kind != "overlay" {
            data.push(("ro", ""));
        }
        let attributes = without_readonly(options.own).set;
        new_filesystem(kind, &data, MountAttrFlags::from_bits_retain(attributes as u32))
    }

    fn cgroups(&self, options: &Options, target: &OwnedFd) -> Result<(), Failure> {
        let mut attributes = MountAttrFlags::from_bits_retain(without_readonly(options.own).set as u32);
        attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, options.own.is_readonly());
        cgroups::mount_at(target.as_fd(), attributes, self.own_cgroups, Some(self.cgroup))
    }
}

trait DuringMount<T> {
    fn during_mount(self, path: &str) -> Result<T, Failure>;
}

impl<T> DuringMount<T> for Result<T, Failure> {
    fn during_mount(self, path: &str) -> Result<T, Failure> {
        self.map_err(|failure| match failure {
            Failure::Setup { step, errno } => Failure::Setup { step: format!("mount `{path}`: {step}"), errno },
            other => other,
        })
    }
}

fn path_of(mount: &Mount) -> Result<&str, Failure> {
    mount.destination().to_str().ok_or_else(|| named(mount, "is not a path in UTF-8"))
}

fn without_readonly(own: Attributes) -> Attributes {
    Attributes { set: own.set & !libc::MOUNT_ATTR_RDONLY, clear: own.clear }
}

/// Sets attributes and propagation.
fn finish(tree: &OwnedFd, options: &Options) -> Result<(), Errno> {
    let Options { own, recursive, propagation, .. } = options;
    if *recursive != Attributes::default() {
        change(tree, MountChange { set: recursive.set, clear: recursive.clear, propagation: 0 }, true)?;
    }
    if *own != Attributes::default() {
        change(tree, MountChange { set: own.set, clear: own.clear, propagation: 0 }, false)?;
    }
    for (what, all) in propagation.iter().map(|propagation| propagation.change()) {
        change(tree, what, all)?;
    }
    Ok(())
}

pub(super) fn change(tree: &OwnedFd, change: MountChange, recursive: bool) -> Result<(), Errno> {
    xbuild_sys::change_mount(tree.as_fd(), change, recursive)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Forbids writing at a path of the root, if there is such a path.
pub(super) fn protect(root: &Root, path: &str) -> Result<(), Failure> {
    let step = || format!("protect `{path}`");
    let Some(target) = there(root, path).during(step)? else { return Ok(()) };
    let copy = clone_tree(target.as_fd(), true).during(step)?;
    change(&copy, MountChange { set: libc::MOUNT_ATTR_RDONLY, ..MountChange::default() }, false).during(step)?;
    attach(copy.as_fd(), target.as_fd()).during(step)
}

/// Hides what is at a path of the root: a directory behind an empty one, anything else behind the null device.
pub(super) fn hide(root: &Root, path: &str, null: BorrowedFd<'_>) -> Result<(), Failure> {
    let step = || format!("hide `{path}`");
    let Some(target) = there(root, path).during(step)? else { return Ok(()) };
    let cover = match type_of(target.as_fd()).during(step)? {
        FileType::Directory => {
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            new_filesystem("tmpfs", &[("size", "0"), ("nr_inodes", "1"), ("mode", "0755")], attributes)?
        }
        _ => clone_tree(null, false).during(step)?,
    };
    attach(cover.as_fd(), target.as_fd()).during(step)
}

fn there(root: &Root, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match open_inside(root.fd(), path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Covers `/dev/null` of the host, which masks are made of; it must be what it says (CVE-2025-31133).
pub(super) fn null() -> Result<OwnedFd, Failure> {
    system::verified_null()
}

/// Whether something is mounted at `/dev` that the runtime fills: not a directory of the host.
pub(super) fn fills_dev(mounts: &[Mount]) -> bool {
    let at_dev = |mount: &&Mount| mount.destination().as_path() == Path::new("/dev");
    !mounts.iter().filter(at_dev).any(|mount| Options::parse(mount).is_ok_and(|options| options.bind.is_some()))
}

/// Forbids writing in `/dev`, where the configuration says so.
pub(super) fn protect_dev(root: &Root, mounts: &[Mount]) -> Result<(), Failure> {
    let readonly = |mount: &Mount| {
        mount.destination().as_path() == Path::new("/dev")
            && Options::parse(mount).is_ok_and(|options| options.bind.is_none() && options.own.is_readonly())
    };
    if !mounts.iter().any(readonly) {
        return Ok(());
    }
    let step = || "protect `/dev`".to_owned();
    let dev = open_inside(root.fd(), "dev").during(step)?;
    change(&dev, MountChange { set: libc::MOUNT_ATTR_RDONLY, ..MountChange::default() }, false).during(step)
}

/// Reports the mode of what is at a path, without following a link there.
pub(super) fn exists(directory: BorrowedFd<'_>, name: &str) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
