//! Moving file content and extended attributes between descriptors.

use super::dir::xattr;
use rustix::fs::{SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

const BUFFER: usize = 256 * 1024;
/// Longer files are moved by the kernel; shorter ones cost fewer calls through a buffer.
const BY_KERNEL: u64 = 128 * 1024;
/// Longer files are hashed by several threads, in pieces of this size.
const WIDE: u64 = 16 << 20;
const WIDE_BUFFER: usize = 4 << 20;
const PER_CALL: usize = 64 << 20;

thread_local! {
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer.
pub(crate) fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    ROOM.with_borrow_mut(|room| {
        room.resize(BUFFER, 0);
        work(room)
    })
}

/// How to copy, and what was learnt about the two file systems on the way.
#[derive(Debug, Default)]
pub(crate) struct Mover {
    no_clone: AtomicBool,
    no_range: AtomicBool,
}

impl Mover {
    /// Copies the content of `from`, `size` bytes in `blocks` blocks of 512, into the empty file `to`; holes stay holes.
    pub(crate) fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        blocks: u64,
    ) -> rustix::io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        if !self.no_clone.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(_) => self.no_clone.store(true, Ordering::Relaxed),
            }
        }
        if blocks.saturating_mul(512) < size && size > 4096 {
            return self.copy_sparse(from, to, size);
        }
        self.copy_range(from, to, 0, u64::MAX)
    }

    /// As [`Mover::copy`], and answers the blake3 digest of the content, holes read as zeros.
    pub(crate) fn copy_hashed(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        blocks: u64,
    ) -> rustix::io::Result<[u8; 32]> {
        let holes = blocks.saturating_mul(512) < size && size > 4096;
        if holes || (size > 0 && !self.no_clone.load(Ordering::Relaxed)) {
            self.copy(from, to, size, blocks)?;
            rustix::fs::seek(from, SeekFrom::Start(0))?;
            return hash_to(from, size, |_| Ok(()));
        }
        hash_to(from, size, |data| write_all(to, data))
    }

    fn copy_sparse(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> rustix::io::Result<()> {
        for_each_extent(from, size, |start, end| {
            rustix::fs::seek(to, SeekFrom::Start(start))?;
            rustix::fs::seek(from, SeekFrom::Start(start))?;
            self.copy_range(from, to, start, end - start)
        })?;
        rustix::fs::ftruncate(to, size)
    }

    /// Copies up to `len` bytes from the current positions, which are both `start`.
    fn copy_range(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, len: u64) -> rustix::io::Result<()> {
        let mut done = 0;
        if len > BY_KERNEL && !self.no_range.load(Ordering::Relaxed) {
            while done < len {
                let want = usize::try_from(len - done).unwrap_or(PER_CALL).min(PER_CALL);
                match rustix::fs::copy_file_range(from, None, to, None, want) {
                    Ok(0) => return Ok(()),
                    Ok(n) => done += n as u64,
                    Err(Errno::INTR) => {}
                    Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC),
                    Err(_) => {
                        self.no_range.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        let _ = start;
        with_buffer(|room| {
            while done < len {
                let want = usize::try_from(len - done).unwrap_or(room.len()).min(room.len());
                let n = read_some(from, &mut room[..want])?;
                if n == 0 {
                    break;
                }
                write_all(to, &room[..n])?;
                done += n as u64;
                if n < want && len == u64::MAX {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Hashes a file of about `size` bytes from its position to its end, and gives every piece to `each`.
pub(crate) fn hash_to(
    from: BorrowedFd<'_>,
    size: u64,
    mut each: impl FnMut(&[u8]) -> rustix::io::Result<()>,
) -> rustix::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut pieces = |room: &mut [u8], wide: bool| loop {
        let n = read_some(from, room)?;
        if n == 0 {
            return Ok(());
        }
        if wide {
            hasher.update_rayon(&room[..n])
        } else {
            hasher.update(&room[..n])
        };
        each(&room[..n])?;
        if n < room.len() && size <= n as u64 {
            // Small files come in one piece; the next read would only say so.
            return Ok(());
        }
    };
    if size >= WIDE {
        pieces(&mut vec![0; WIDE_BUFFER], true)?;
    } else {
        with_buffer(|room| pieces(room, false))?;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Calls `each` with start and end of every stretch of data of a file of `size` bytes.
pub(crate) fn for_each_extent(
    file: BorrowedFd<'_>,
    size: u64,
    mut each: impl FnMut(u64, u64) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return each(at, size),
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        each(start, end)?;
        at = end;
    }
    Ok(())
}

/// Reads once, past interruptions.
pub(crate) fn read_some(fd: BorrowedFd<'_>, room: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *room))
}

/// Writes everything.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> rustix::io::Result<()> {
    while !data.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::write(fd, data))?;
        data = &data[n..];
    }
    Ok(())
}

/// True for attributes that are part of an image's files; overlayfs's own marks are not.
pub(crate) fn is_kept_xattr(name: &[u8]) -> bool {
    let is_ours = name.starts_with(b"user.overlay.") || name.starts_with(b"user.xbuild.");
    name == b"security.capability" || (name.starts_with(b"user.") && !is_ours)
}

/// The attributes that are part of an image's files, sorted by name.
pub(crate) fn kept_xattrs(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut names = [0_u8; 1024];
    let names = match rustix::fs::flistxattr(fd, &mut names[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => names[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut names = vec![0_u8; 65536];
            let len = rustix::fs::flistxattr(fd, &mut names[..])?;
            names.truncate(len);
            names
        }
        Err(e) => return Err(e),
    };
    let mut kept = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| is_kept_xattr(n)) {
        let name = OsStr::from_bytes(name);
        if let Some(value) = xattr_os(fd, name)? {
            kept.push((name.to_os_string(), value));
        }
    }
    kept.sort();
    Ok(kept)
}

fn xattr_os(fd: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<Vec<u8>>> {
    match name.to_str() {
        Some(name) => xattr(fd, name),
        None => Ok(None),
    }
}

/// Sets attributes; those the file system cannot hold are left out, as every builder does.
pub(crate) fn set_xattrs(fd: BorrowedFd<'_>, xattrs: &[(OsString, Vec<u8>)]) -> rustix::io::Result<()> {
    for (name, value) in xattrs {
        match rustix::fs::fsetxattr(fd, name.as_os_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
