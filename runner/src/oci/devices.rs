//! `/dev` of a container.

use super::mounts::exists;
use crate::error::{During, Failure};
use crate::protocol::Leftovers;
use crate::sandbox::nodes::USUAL;
use crate::sandbox::resolve::{Kind, Root, open_inside};
use crate::sandbox::rootfs::{attach, clone_tree, open_host};
use crate::sandbox::system::LINKS;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, fstat, makedev, mknodat, symlinkat, unlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

struct Node<'a> {
    path: &'a str,
    kind: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Makes the nodes that every container has and those of the configuration, and the usual links.
pub(super) fn fill(root: &Root, devices: &[LinuxDevice]) -> Result<(), Failure> {
    for device in devices {
        let path = device.path().to_str().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| refused(device.path(), "is not an absolute path"))?;
        make(root, &node(device, path)?)?;
    }
    for (name, major, minor) in USUAL {
        let path = format!("/dev/{name}");
        let device = makedev(major, minor);
        make(root, &Node { path: &path, kind: FileType::CharacterDevice, device, mode: 0o666, owner: (0, 0) })?;
    }
    let dev = open_inside(root.fd(), "dev").during(|| "open `/dev`".to_owned())?;
    links(&dev).during(|| "make links in `/dev`".to_owned())
}

fn links(dev: &OwnedFd) -> Result<(), Errno> {
    // What an image has there is another's.
    match unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    for (name, target) in LINKS {
        match symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn node<'a>(device: &LinuxDevice, path: &'a str) -> Result<Node<'a>, Failure> {
    let number =
        |number: i64| u32::try_from(number).map_err(|_| refused(device.path(), "has a number that no device can have"));
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(refused(device.path(), "has no type of its own")),
    };
    Ok(Node {
        path,
        kind,
        device: if kind == FileType::Fifo { 0 } else { makedev(number(device.major())?, number(device.minor())?) },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::Refused(format!("linux.devices: `{}` {why}", path.display()))
}

fn make(root: &Root, node: &Node<'_>) -> Result<(), Failure> {
    let step = || format!("make the device `{}`", node.path);
    let (above, name) = node.path.rsplit_once('/').unwrap_or(("", node.path));
    if name.is_empty() || matches!(name, "." | "..") {
        return Err(refused(Path::new(node.path), "is not the name of a device"));
    }
    let parent = root.directory(above)?;
    if exists(parent.as_fd(), name) {
        return Ok(());
    }
    match mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), node.device) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).during(step)
        }
        // User namespaces make no devices; the host's own is shown there instead.
        Err(Errno::PERM) => show(root, node),
        Err(error) => Err(error).during(step),
    }
}

fn show(root: &Root, node: &Node<'_>) -> Result<(), Failure> {
    let step = || format!("show the device `{}` of the host", node.path);
    let own = open_host(Path::new(node.path))?;
    let about = fstat(&own).during(step)?;
    if FileType::from_raw_mode(about.st_mode) != node.kind || about.st_rdev != node.device {
        return Err(refused(Path::new(node.path), "is another device on the host, and none can be made here"));
    }
    let target = root.mount_point(node.path, Kind::File, &mut Leftovers::default())?;
    attach(clone_tree(own.as_fd(), false).during(step)?.as_fd(), target.as_fd()).during(step)
}
