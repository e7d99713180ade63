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
pub(super) fn mount(sys: BorrowedFd<'_>, readonly: MountAttrFlags, spec: &Spec) -> Result<(), Failure> {
    let Some(target) = below(sys, "fs/cgroup").during(|| "open `/sys/fs/cgroup`".to_owned())? else {
        return Ok(());
    };
    let mounted = if crate::cgroup::is_unified() {
        new_filesystem("cgroup2", &[], ATTRIBUTES | readonly)?
    } else if spec.show_cgroups {
        let directory = new_filesystem("tmpfs", &[("mode", "0755"), ("size", "64k")], ATTRIBUTES)?;
        attach(directory.as_fd(), target.as_fd()).during(|| "attach `/sys/fs/cgroup`".to_owned())?;
        return legacy(&directory, readonly, spec);
    } else {
        return Ok(());
    };
    attach(mounted.as_fd(), target.as_fd()).during(|| "attach `/sys/fs/cgroup`".to_owned())
}

fn legacy(directory: &OwnedFd, readonly: MountAttrFlags, spec: &Spec) -> Result<(), Failure> {
    for (name, options) in crate::cgroup::legacy_mounts() {
        let step = || format!("show the control groups of `{name}`");
        mkdirat(directory, &name, Mode::from_raw_mode(0o755)).during(step)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(directory, &name, flags, Mode::empty()).during(step)?;
        let tree = match (&spec.namespaces.cgroup, &spec.cgroup) {
            (Space::Own, _) | (_, None) => hierarchy(&options, readonly)?,
            // A mount of the whole hierarchy would show those of others.
            (_, Some(group)) => match own_group(&options, group, readonly)? {
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
