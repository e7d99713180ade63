//! A terminal of the sandbox's own `/dev/pts`.

use super::resolve::Root;
use super::rootfs::{attach, clone_tree};
use crate::error::{During, Failure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, openat, openat2};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Opens a new terminal of the file system `pts`, sends its controlling side over `socket`, and gives the other side
/// with its name.
pub(crate) fn open(
    pts: BorrowedFd<'_>,
    (rows, columns): (u16, u16),
    socket: BorrowedFd<'_>,
) -> Result<(OwnedFd, String), Failure> {
    let step = || "open a terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let controller = openat2(pts, "ptmx", flags, Mode::empty(), resolve).during(step)?;
    // Whoever is in the sandbox may have put something else there (CVE-2025-52565).
    let about = fstat(&controller).during(step)?;
    let genuine = FileType::from_raw_mode(about.st_mode) == FileType::CharacterDevice
        && (major(about.st_rdev), minor(about.st_rdev)) == (5, 2)
        && fstatfs(&controller).during(step)?.f_type as u64 == DEVPTS_MAGIC;
    if !genuine {
        return Err(Failure::Refused("`/dev/pts/ptmx` is not the device that makes terminals".to_owned()));
    }
    unlockpt(&controller).during(step)?;
    let device =
        ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).during(step)?;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&controller, size).during(|| "set the size of the terminal".to_owned())?;
    let name = ptsname(&controller, Vec::new()).during(step)?;
    let name = name.to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    hand_over(socket, controller.as_fd()).during(|| "hand the terminal over".to_owned())?;
    Ok((device, name))
}

/// Shows the terminal called `name` as `/dev/console`, too.
pub(crate) fn show(root: &Root, pts: BorrowedFd<'_>, name: &str) -> Result<(), Failure> {
    let step = || "show the terminal as `/dev/console`".to_owned();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(pts, name, flags, Mode::empty()).during(step)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let target = openat2(
        root.fd(),
        "dev/console",
        OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o620),
        resolve,
    )
    .during(step)?;
    attach(clone_tree(source.as_fd(), false).during(step)?.as_fd(), target.as_fd()).during(step)
}

/// Sends the controlling side of a terminal over a socket.
pub(crate) fn hand_over(socket: BorrowedFd<'_>, controller: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    crate::descriptors::send(socket, &[controller])
}
