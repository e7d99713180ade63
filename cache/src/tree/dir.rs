//! One directory of a merged tree: the stack of directories that overlayfs would show as one.

use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Meta};
use super::owner;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Directories nested deeper than this are refused: no real tree is, and everything after us would suffer.
pub(crate) const MAX_DEPTH: usize = 4096;

/// Which extended attributes overlayfs uses for its marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`, the default.
    #[default]
    Trusted,
    /// `user.overlay.*`, for mounts with `userxattr`. Owners that the kernel does not take are in attributes, too.
    User,
    /// None: the directory is not overlayfs's, and a device 0:0 is just that.
    Plain,
}

impl Marks {
    /// The attribute that hides what lower directories hold.
    pub(crate) fn opaque(self) -> Option<&'static str> {
        match self {
            Marks::Trusted => Some("trusted.overlay.opaque"),
            Marks::User => Some("user.overlay.opaque"),
            Marks::Plain => None,
        }
    }

    /// Attributes of an open file or directory.
    pub(crate) fn meta_of(self, fd: BorrowedFd<'_>) -> rustix::io::Result<Meta> {
        let mut meta = Meta::of(&rustix::fs::fstat(fd)?);
        if self == Marks::User {
            owner::read(fd, &mut meta)?;
        }
        Ok(meta)
    }

    /// Attributes of a name that was looked at.
    pub(crate) fn meta_at(self, dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> rustix::io::Result<Meta> {
        let mut meta = Meta::of(stat);
        if self == Marks::User && !meta.is_whiteout() {
            owner::read_at(dir, name, &mut meta)?;
        }
        Ok(meta)
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory beside `parent`, never through a link.
pub(crate) fn open_dir(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens a directory of the host by path.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context("open directory", path)
}

/// Opens a regular file for reading; anything else that took its place is refused without waiting for it.
pub(crate) fn open_regular(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(OwnedFd, Meta)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty()).context("open", path)?;
    let meta = Meta::of(&rustix::fs::fstat(&file).context("stat", path)?);
    if !meta.is_file() {
        return Err(TreeError::unfit(path, "not a regular file"));
    }
    Ok((file, meta))
}

/// Value of an extended attribute, none if it is absent or the file system has none.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &str) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut room = [0_u8; 256];
    match rustix::fs::fgetxattr(fd, name, &mut room[..]) {
        Ok(len) => Ok(Some(room[..len].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS) => Ok(None),
        Err(Errno::RANGE) => {
            let mut room = vec![0_u8; 65536];
            let len = rustix::fs::fgetxattr(fd, name, &mut room[..])?;
            room.truncate(len);
            Ok(Some(room))
        }
        Err(e) => Err(e),
    }
}

/// One directory that takes part in a [`Dir`].
#[derive(Debug)]
pub(crate) struct Part {
    /// Which of the view's diff directories it belongs to, 0 the topmost.
    pub(crate) layer: usize,
    /// The directory, readable.
    pub(crate) fd: OwnedFd,
}

/// The stacked directories behind one path, topmost first; at least one unless nothing exists below.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    parts: Arc<Vec<Part>>,
    marks: Marks,
}

/// A name in a merged directory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    /// Index into the parts of the directory.
    pub(crate) part: usize,
    /// The kind as listed; `None` where the file system does not tell.
    pub(crate) kind: Option<Kind>,
    /// It hides what lower trees hold under the name; only listed by [`Dir::entries_with_whiteouts`].
    pub(crate) whiteout: bool,
}

impl Dir {
    pub(crate) fn new(parts: Vec<Part>, marks: Marks) -> Dir {
        Dir { parts: Arc::new(parts), marks }
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The directory whose attributes the merged one shows.
    pub(crate) fn top(&self) -> Option<BorrowedFd<'_>> {
        self.parts.first().map(|p| p.fd.as_fd())
    }

    pub(crate) fn fd(&self, part: usize) -> BorrowedFd<'_> {
        self.parts[part].fd.as_fd()
    }

    /// Attributes of the directory itself.
    pub(crate) fn meta(&self) -> rustix::io::Result<Meta> {
        match self.top() {
            Some(fd) => self.marks.meta_of(fd),
            None => Err(Errno::NOENT),
        }
    }

    /// The part that decides about `name`, with its attributes; whiteouts count as absence.
    pub(crate) fn stat(&self, name: &OsStr) -> rustix::io::Result<Option<(usize, Meta)>> {
        for (at, part) in self.parts.iter().enumerate() {
            match rustix::fs::statat(&part.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let meta = self.marks.meta_at(part.fd.as_fd(), name, &stat)?;
                    let hidden = self.marks != Marks::Plain && meta.is_whiteout();
                    return Ok((!hidden).then_some((at, meta)));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The merged sub-directory `name`; none if it is absent or something else.
    pub(crate) fn child(&self, name: &OsStr) -> rustix::io::Result<Option<Dir>> {
        self.child_from(name, 0)
    }

    /// As [`Dir::child`], knowing that the parts before `first` do not have the name.
    pub(crate) fn child_from(&self, name: &OsStr, first: usize) -> rustix::io::Result<Option<Dir>> {
        let mut parts = Vec::with_capacity(1);
        let last = self.parts.len().saturating_sub(1);
        for (at, part) in self.parts.iter().enumerate().skip(first) {
            match open_dir(part.fd.as_fd(), name) {
                Ok(fd) => {
                    let opaque = at < last && self.is_opaque(fd.as_fd())?;
                    parts.push(Part { layer: part.layer, fd });
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(e) => return Err(e),
            }
        }
        Ok((!parts.is_empty()).then(|| Dir::new(parts, self.marks)))
    }

    /// True if a directory, one of the parts, hides what lies under it.
    pub(crate) fn is_opaque(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        match self.marks.opaque() {
            Some(name) => Ok(xattr(fd, name)?.is_some_and(|v| v == b"y")),
            None => Ok(false),
        }
    }

    /// All names, sorted by bytes, without whiteouts and what they hide.
    pub(crate) fn entries(&self) -> rustix::io::Result<Vec<Entry>> {
        let mut entries = self.entries_with_whiteouts()?;
        entries.retain(|e| !e.whiteout);
        Ok(entries)
    }

    /// All names, sorted by bytes.
    pub(crate) fn entries_with_whiteouts(&self) -> rustix::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if let [only] = self.parts.as_slice() {
            list(only.fd.as_fd(), |name, kind| {
                entries.push(Entry { name: name.to_os_string(), part: 0, kind, whiteout: false });
            })?;
            entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        } else {
            let mut merged: BTreeMap<OsString, (usize, Option<Kind>)> = BTreeMap::new();
            for (part, holder) in self.parts.iter().enumerate() {
                list(holder.fd.as_fd(), |name, kind| {
                    if !merged.contains_key(name) {
                        merged.insert(name.to_os_string(), (part, kind));
                    }
                })?;
            }
            let named = |(name, (part, kind))| Entry { name, part, kind, whiteout: false };
            entries.extend(merged.into_iter().map(named));
        }
        if self.marks != Marks::Plain {
            for entry in entries.iter_mut().filter(|e| matches!(e.kind, Some(Kind::Char) | None)) {
                entry.whiteout = self.stat_entry(entry)?.is_some_and(|m| m.is_whiteout());
            }
        }
        Ok(entries)
    }

    /// Attributes of a listed entry; none if it vanished.
    pub(crate) fn stat_entry(&self, entry: &Entry) -> rustix::io::Result<Option<Meta>> {
        match rustix::fs::statat(self.fd(entry.part), &entry.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(self.marks.meta_at(self.fd(entry.part), &entry.name, &stat)?)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Target of a link.
    pub(crate) fn readlink(&self, part: usize, name: &OsStr) -> rustix::io::Result<OsString> {
        let target = rustix::fs::readlinkat(self.fd(part), name, Vec::new())?;
        Ok(OsStr::from_bytes(target.as_bytes()).to_os_string())
    }
}

/// Calls `each` for every name of a directory except `.` and `..`, in the file system's order.
pub(crate) fn list(dir: BorrowedFd<'_>, mut each: impl FnMut(&OsStr, Option<Kind>)) -> rustix::io::Result<()> {
    // A second open file description, since the position of the first is shared.
    let own = rustix::fs::openat(dir, c".", DIRECTORY, Mode::empty())?;
    let mut room = [MaybeUninit::uninit(); 32 * 1024];
    let mut listing = RawDir::new(&own, &mut room);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => None,
            known => Some(Kind::of(known)),
        };
        each(OsStr::from_bytes(name), kind);
    }
    Ok(())
}

/// Opens a directory at a path of plain directories, however long the path is.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), BENEATH) {
        Err(Errno::NAMETOOLONG) => {
            let mut names = path.iter();
            let mut fd = open_dir(root, names.next().ok_or(Errno::NOENT)?)?;
            for name in names {
                fd = open_dir(fd.as_fd(), name)?;
            }
            Ok(fd)
        }
        answer => answer,
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
