//! Memory for files that are mounted into the sandbox: hosts, secrets, scripts, and the empty directory of the masks.
//!
//! A tmpfs in the new mount namespace, over the host's root directory where no path leads to it. It is attached because
//! kernels before 6.15 make bind mounts of attached mounts only; it goes with the old root.

use super::rootfs::{attach, clone_tree, new_filesystem};
use crate::error::{During, Failure};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub(crate) struct Staging {
    fd: OwnedFd,
    names: u32,
}

impl Staging {
    /// Mounts the memory over `host_root`, the root directory the process came with.
    pub(crate) fn new(host_root: BorrowedFd<'_>) -> Result<Staging, Failure> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        // Without swap where the kernel can (6.4), for the sake of secrets.
        let options = [("mode", "0700"), ("size", "64m"), ("noswap", "")];
        let tmpfs = new_filesystem("tmpfs", &options, attributes)
            .or_else(|_| new_filesystem("tmpfs", &options[..2], attributes))?;
        attach(tmpfs.as_fd(), host_root).during(|| "attach the staging tmpfs".to_owned())?;
        Ok(Staging { fd: tmpfs, names: 0 })
    }

    fn name(&mut self) -> String {
        self.names += 1;
        self.names.to_string()
    }

    /// A detached bind mount of a new file with these bytes.
    pub(crate) fn file(&mut self, data: &[u8], mode: u32, owner: (u32, u32)) -> Result<OwnedFd, Failure> {
        let name = self.name();
        self.write(&name, data, mode, owner).during(|| "keep a file in memory".to_owned())
    }

    fn write(&self, name: &str, data: &[u8], mode: u32, (uid, gid): (u32, u32)) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?;
        let mut rest = data;
        while !rest.is_empty() {
            match rustix::io::write(&file, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        // Where there is one id only, every user is the same.
        if (uid, gid) != (0, 0) && !crate::rootless::has_one_id() {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        clone_tree(file.as_fd(), false)
    }

    /// A new empty directory, to mount something on or to show as it is.
    pub(crate) fn directory(&mut self, mode: u32) -> Result<OwnedFd, Failure> {
        let name = self.name();
        mkdirat(&self.fd, &name, Mode::from_raw_mode(mode))
            .and_then(|()| openat(&self.fd, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .during(|| "make a staging directory".to_owned())
    }
}
