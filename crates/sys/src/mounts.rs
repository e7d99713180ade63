//! Mount attributes by descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes of one mount, as `mount_setattr(2)` names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// No writes through this mount.
    pub readonly: bool,
    /// Set-user-ID bits and file capabilities have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed or mapped executable.
    pub noexec: bool,
}

impl MountFlags {
    fn bits(self) -> u64 {
        let mut bits = 0;
        for (on, bit) in [
            (self.readonly, libc::MOUNT_ATTR_RDONLY),
            (self.nosuid, libc::MOUNT_ATTR_NOSUID),
            (self.nodev, libc::MOUNT_ATTR_NODEV),
            (self.noexec, libc::MOUNT_ATTR_NOEXEC),
        ] {
            if on {
                bits |= bit;
            }
        }
        bits
    }
}

/// Adds `flags` to the mount whose root is `tree`, and to all mounts below it when `recursive`. Attributes that are on
/// already stay on. Linux 5.12; `ENOSYS` is returned unchanged.
pub fn set_mount_flags(tree: BorrowedFd<'_>, flags: MountFlags, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: flags.bits(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    setattr(tree, libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 }, &attributes)
}

fn setattr(tree: BorrowedFd<'_>, at: libc::c_int, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: `attributes` outlives the call and its exact size is passed, so the kernel reads initialised bytes only;
    // the empty C string is static; `tree` is open for the borrow. The call writes no user memory.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            at,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A change of mount attributes and propagation, in the kernel's own bits (`MOUNT_ATTR_*`, `MS_SHARED` and the like).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountChange {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// Propagation type; as it is when 0.
    pub propagation: u64,
}

/// Changes the mount whose root is `tree`, and with `recursive` all mounts below it. Linux 5.12.
pub fn change_mount(tree: BorrowedFd<'_>, change: MountChange, recursive: bool) -> io::Result<()> {
    let at = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    setattr(tree, at, &attributes)
}
