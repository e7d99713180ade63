//! The mounts a request asks for.

use super::resolve::{Kind, Root, type_of};
use super::rootfs::{Writable, attach, clone_tree, new_filesystem, open_host, overlay, select};
use super::staging::Staging;
use crate::error::{During, Failure};
use crate::protocol::Leftovers;
use crate::spec::{MountSource, MountSpec, Spec};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, StatxFlags, Uid, chmodat, chownat, fstatfs};
use rustix::mount::MountAttrFlags;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use xbuild_sys::MountFlags;

/// Detached mounts of a request that stay connected with the host's, by their places in it.
pub(crate) type Propagated = BTreeMap<usize, OwnedFd>;

const PROC_MAGIC: u64 = 0x9fa0;

/// Clones what is to stay connected with the host's mounts. To be called in the new mount namespace, before it is cut off.
pub(crate) fn take_hold(spec: &Spec) -> Result<Propagated, Failure> {
    let mut held = Propagated::new();
    for (index, mount) in spec.mounts.iter().enumerate() {
        if let MountSource::Propagated { path, recursive, propagation } = &mount.source {
            check_connected(path, propagation.is_shared())?;
            let tree = clone_tree(open_host(path)?.as_fd(), *recursive);
            held.insert(index, tree.during(|| format!("prepare the mount `{}`", mount.destination))?);
        }
    }
    Ok(held)
}

/// Refuses, in docker's words, a source whose mount passes nothing on.
fn check_connected(path: &Path, both_ways: bool) -> Result<(), Failure> {
    let step = || format!("look for the mount of `{}`", path.display());
    let mount = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).during(step)?.stx_mnt_id;
    let all = std::fs::read_to_string("/proc/self/mountinfo").during(step)?;
    // See proc_pid_mountinfo(5): optional fields stand before a lone dash.
    let line = all.lines().find(|line| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(mount));
    let fields: Vec<&str> = line.unwrap_or_default().split(' ').take_while(|field| *field != "-").collect();
    let has = |kind: &str| fields.iter().skip(6).any(|field| field.starts_with(kind));
    let (connected, wanted) = match both_ways {
        true => (has("shared:"), "a shared"),
        false => (has("shared:") || has("master:"), "a shared or slave"),
    };
    if connected {
        return Ok(());
    }
    let on = fields.get(4).unwrap_or(&"/");
    Err(Failure::Refused(format!("path {} is mounted on {on} but it is not {wanted} mount", path.display())))
}

/// Mounts what `spec` lists, after the files the engine itself lays over the image. With `nodev`, device nodes in them
/// cannot be opened.
pub(crate) fn mount_all(
    root: &Root,
    spec: &Spec,
    mut held: Propagated,
    nodev: bool,
    staging: &mut Staging,
    leftovers: &mut Leftovers,
) -> Result<(), Failure> {
    let all = MountFlags { nodev, ..MountFlags::default() };
    for (data, path) in [(&spec.resolv_conf, "/etc/resolv.conf"), (&spec.hosts_file, "/etc/hosts")] {
        if let Some(data) = data {
            let file = staging.file(data, 0o644, (0, 0))?;
            place(root, path, file, MountFlags { readonly: true, ..all }, leftovers)?;
        }
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let tree = match held.remove(&index) {
            Some(tree) => connected(mount, tree)?,
            None => detached(mount, staging)?,
        };
        place(root, &mount.destination, tree, MountFlags { readonly: mount.readonly, ..all }, leftovers)?;
    }
    Ok(())
}

/// Attaches a detached mount at a path of the root.
fn place(root: &Root, path: &str, tree: OwnedFd, flags: MountFlags, leftovers: &mut Leftovers) -> Result<(), Failure> {
    let kind = match type_of(tree.as_fd()).during(|| format!("look at the source of the mount `{path}`"))? {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    let target = root.mount_point(path, kind, leftovers)?;
    let on = fstatfs(&target).during(|| format!("look at `{path}`"))?;
    if on.f_type as u64 == PROC_MAGIC {
        return Err(Failure::Refused(format!("`{path}` cannot be mounted because it is inside /proc")));
    }
    if flags != MountFlags::default() {
        xbuild_sys::set_mount_flags(tree.as_fd(), flags, true).during(|| format!("protect `{path}`"))?;
    }
    attach(tree.as_fd(), target.as_fd()).during(|| format!("mount `{path}`"))
}

/// Lets a mount that was taken hold of pass on what the request says.
fn connected(mount: &MountSpec, tree: OwnedFd) -> Result<OwnedFd, Failure> {
    if let MountSource::Propagated { propagation, .. } = &mount.source {
        let (change, all) = propagation.change();
        xbuild_sys::change_mount(tree.as_fd(), change, all).during(|| format!("connect `{}`", mount.destination))?;
    }
    Ok(tree)
}

fn detached(mount: &MountSpec, staging: &mut Staging) -> Result<OwnedFd, Failure> {
    let label = || format!("prepare the mount `{}`", mount.destination);
    match &mount.source {
        MountSource::Bind { path, selector, recursive } => {
            let source = select(open_host(path)?.as_fd(), selector)?;
            clone_tree(source.as_fd(), *recursive).during(label)
        }
        // Nobody took hold of it: a look at the files only.
        MountSource::Propagated { path, recursive, .. } => {
            clone_tree(open_host(path)?.as_fd(), *recursive).during(label)
        }
        MountSource::Overlay { lower, scratch, selector } => {
            let writable =
                scratch.as_ref().map(|(upper, work)| Writable { upper, work, volatile: true, userxattr: false });
            let tree = overlay(lower, writable.as_ref())?;
            if selector.trim_matches('/').is_empty() {
                return Ok(tree);
            }
            let stage = staging.directory(0o755)?;
            attach(tree.as_fd(), stage.as_fd()).during(label)?;
            let source = select(tree.as_fd(), selector)?;
            let part = clone_tree(source.as_fd(), false).during(label)?;
            Ok(part)
        }
        MountSource::Tmpfs { size, mode, noexec, options: more } => {
            let mode = format!("{mode:o}");
            let size = size.map(|size| size.to_string());
            let mut options = vec![("mode", mode.as_str())];
            options.extend(size.as_deref().map(|size| ("size", size)));
            options.extend(more.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, *noexec);
            new_filesystem("tmpfs", &options, attributes)
        }
        MountSource::File { data, mode, uid, gid } => {
            let tree = staging.file(data, *mode, (*uid, *gid))?;
            let flags = MountFlags { nosuid: true, nodev: true, ..MountFlags::default() };
            xbuild_sys::set_mount_flags(tree.as_fd(), flags, false).during(label)?;
            Ok(tree)
        }
        MountSource::Socket { path, mode, uid, gid } => socket(path, *mode, *uid, *gid),
    }
}

fn socket(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<OwnedFd, Failure> {
    let source = open_host(path)?;
    let label = || format!("mount the socket `{}`", path.display());
    if type_of(source.as_fd()).during(label)? != FileType::Socket {
        return Err(Failure::Refused(format!("`{}` is not a socket", path.display())));
    }
    // Where there is one id only, every user is the same.
    if !crate::rootless::has_one_id() {
        chownat(&source, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH).during(label)?;
    }
    // An O_PATH descriptor takes no fchmod; its /proc link reaches exactly this socket. This is the host's /proc.
    let itself = format!("/proc/self/fd/{}", source.as_raw_fd());
    chmodat(CWD, itself, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty()).during(label)?;
    clone_tree(source.as_fd(), false).during(label)
}
