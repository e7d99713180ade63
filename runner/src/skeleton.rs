//! A lowest directory with the mount points that images lack.
//!
//! Making and removing `/etc/hosts` and `/etc/resolv.conf` for every step costs a handful of inodes and a copy of
//! `/etc` each time. As the last lower directory of an overlay this tree gives them without a trace in the upper one:
//! what an image has lies over it. It is no part of any image and never exported.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What is made last: where it is, all is.
pub(crate) const LAST: &str = "etc/mtab";

/// Makes the tree at `path`, on the file system of the layers, or leaves it as it is. Safe to call from several
/// processes at once.
pub fn create(path: &Path) -> io::Result<()> {
    let etc = path.join("etc");
    for directory in ["", "etc", "dev", "proc", "sys"].map(|name| path.join(name)) {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    }
    for name in ["hosts", "resolv.conf", "hostname"] {
        let file = etc.join(name);
        match fs::OpenOptions::new().write(true).create_new(true).open(&file) {
            Ok(_) => fs::set_permissions(&file, Permissions::from_mode(0o644))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    match symlink("/proc/mounts", path.join(LAST)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
