//! The control groups that a process sees below `/sys/fs/cgroup`.

use super::rootfs::{attach, clone_tree, new_filesystem, open_host};
use super::system::below;
use crate::error::{During, Failure};
use crate::spec::{CgroupSpec, Space, Spec};
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xbuild_sys::MountFlags;

const ATTRIBUTES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Shows the process's own groups: the unified hierarchy where the host has only that, and those of version 1 for
/// requests that ask for them, since many mounts cost more than steps of a build need them.
pub(crate) fn mount(sys: BorrowedFd<'_>, readonly: MountAttrFlags, spec: &Spec) -> Result<(), Failure> {
    if !crate::cgroup::is_unified() && !spec.show_cgroups {
        return Ok(());
    }
    let Some(target) = below(sys, "fs/cgroup").during(|| "open `/sys/fs/cgroup`".to_owned())? else {
        return Ok(());
    };
    let own = spec.namespaces.cgroup == Space::Own;
    mount_at(target.as_fd(), ATTRIBUTES | readonly, own, spec.cgroup.as_ref())
}

/// The same at any directory; `own` if the process has a namespace of control groups.
pub(crate) fn mount_at(
    target: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    own: bool,
    group: Option<&CgroupSpec>,
) -> Result<(), Failure> {
    let step = || "attach `/sys/fs/cgroup`".to_owned();
    if crate::cgroup::is_unified() {
        let mounted = new_filesystem("cgroup2", &[], attributes)?;
        return attach(mounted.as_fd(), target).during(step);
    }
    let readonly = attributes & MountAttrFlags::MOUNT_ATTR_RDONLY;
    let directory = new_filesystem("tmpfs", &[("mode", "0755"), ("size", "64k")], attributes - readonly)?;
    attach(directory.as_fd(), target).during(step)?;
    legacy(&directory, readonly, own, group)
}

fn legacy(directory: &OwnedFd, readonly: MountAttrFlags, own: bool, group: Option<&CgroupSpec>) -> Result<(), Failure> {
    for (name, options) in crate::cgroup::legacy_mounts() {
        let step = || format!("show the control groups of `{name}`");
        mkdirat(directory, &name, Mode::from_raw_mode(0o755)).during(step)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(directory, &name, flags, Mode::empty()).during(step)?;
        let tree = match group.filter(|_| !own) {
            None => hierarchy(&options, readonly)?,
            // A mount of the whole hierarchy would show those of others.
            Some(group) => match own_group(&options, group, readonly)? {
                Some(tree) => tree,
                None => continue,
            },
        };
        attach(tree.as_fd(), target.as_fd()).during(step)?;
        for controller in options.split(',').filter(|one| name.contains(',') && !one.contains('=')) {
            symlinkat(&name, directory, controller).during(step)?;
        }
    }
    if readonly.is_empty() {
        return Ok(());
    }
    let protect = MountFlags { readonly: true, ..MountFlags::default() };
    xbuild_sys::set_mount_flags(directory.as_fd(), protect, false).during(|| "protect `/sys/fs/cgroup`".to_owned())
}

fn hierarchy(options: &str, readonly: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let options: Vec<(&str, &str)> =
        options.split(',').map(|option| option.split_once('=').unwrap_or((option, ""))).collect();
    new_filesystem("cgroup", &options, ATTRIBUTES | readonly)
}

fn own_group(options: &str, group: &CgroupSpec, readonly: MountAttrFlags) -> Result<Option<OwnedFd>, Failure> {
    let controller = options.split(',').next().unwrap_or_default();
    let Some((path, _)) = crate::cgroup::directory(group, controller).filter(|(path, _)| path.is_dir()) else {
        return Ok(None);
    };
    let tree = clone_tree(open_host(&path)?.as_fd(), false).during(|| format!("show `{}`", path.display()))?;
    let flags = MountFlags { readonly: !readonly.is_empty(), nosuid: true, nodev: true, noexec: true };
    xbuild_sys::set_mount_flags(tree.as_fd(), flags, false).during(|| format!("protect `{}`", path.display()))?;
    Ok(Some(tree))
}
