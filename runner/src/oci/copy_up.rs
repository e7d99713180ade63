//! Filling a new memory file system with what it covers.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, fstat, mkdirat, mknodat,
    openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories within each other that are copied.
const DEPTH: usize = 128;

/// Copies what is in the directory `from` to the directory `to`; no link is followed.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    level(&reopen(from)?, &reopen(to)?, 0)
}

fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn level(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let about = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(about.st_mode);
        let mode = Mode::from_raw_mode(about.st_mode & 0o7777);
        let beneath = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                mkdirat(to, name, mode)?;
                let open =
                    |base: &OwnedFd| openat(base, name, OFlags::RDONLY | OFlags::DIRECTORY | beneath, Mode::empty());
                level(&open(from)?, &open(to)?, depth + 1)?;
            }
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            FileType::RegularFile => {
                let source = openat(from, name, OFlags::RDONLY | OFlags::NONBLOCK | beneath, Mode::empty())?;
                if FileType::from_raw_mode(fstat(&source)?.st_mode) != FileType::RegularFile {
                    return Err(Errno::AGAIN);
                }
                let target = openat(to, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | beneath, mode)?;
                let (mut source, mut target) = (std::fs::File::from(source), std::fs::File::from(target));
                std::io::copy(&mut source, &mut target)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            }
            _ => mknodat(to, name, kind, mode, about.st_rdev)?,
        }
        let owner = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
        chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            // Changing the owner has cleared some bits.
            chmodat(to, name, mode, AtFlags::empty())?;
        }
        let time = |seconds, nanoseconds| Timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as _ };
        let times = Timestamps {
            last_access: time(about.st_atime, about.st_atime_nsec),
            last_modification: time(about.st_mtime, about.st_mtime_nsec),
        };
        utimensat(to.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
