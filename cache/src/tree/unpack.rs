//! Unpacking a layer into a diff directory of its own.

use super::content::{is_kept_xattr, set_xattrs, with_buffer, write_all};
use super::dir::{Marks, open_beneath, open_dir, open_root};
use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Meta, Time};
use super::remove::remove_tree;
use super::tar_read::{EntryKind, TarEntry, TarReader};
use super::view::View;
use super::writer::{Ids, create, make_node, set_file, set_node_time};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much one archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file content; holes do not count.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 64 GiB and ten million entries.
    fn default() -> Limits {
        Limits { bytes: 64 << 30, entries: 10_000_000 }
    }
}

/// Gives the tree below a layer, when a hard link or an unlisted directory needs it. May wait until it is there.
pub type Base<'a> = &'a dyn Fn() -> Result<View>;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries, whiteouts among them.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// Unpacks a layer tar, already decompressed, into the empty directory `diff` in overlayfs form.
///
/// Owners and times are taken as given; `security.capability` and `user.*` attributes are kept, all others are dropped, so
/// no archive can set overlayfs's marks. Links in parents are followed inside the layer only. Directories that the archive
/// does not list take their attributes from `base`. The stream is read to its end. On an error the directory holds a part.
pub fn unpack_layer<R: Read>(layer: R, diff: &Path, base: Base<'_>, marks: Marks, limits: Limits) -> Result<Unpacked> {
    let root = open_root(diff)?;
    rustix::fs::fchmod(&root, Mode::from(0o755)).context("set mode of", "/")?;
    let mut unpacker = Unpacker {
        root: Arc::new(root),
        base,
        known: None,
        marks,
        limits,
        done: Unpacked::default(),
        dirs: HashMap::new(),
        times: Vec::new(),
    };
    let mut reader = TarReader::new(layer);
    while let Some(entry) = reader.next()? {
        unpacker.done.entries += 1;
        if unpacker.done.entries > limits.entries {
            return Err(TreeError::Limit { limit: limits.entries, unit: "entries" });
        }
        unpacker.entry(&entry, &mut reader)?;
    }
    unpacker.finish()?;
    std::io::copy(&mut reader.into_inner(), &mut std::io::sink()).map_err(TreeError::Archive)?;
    Ok(unpacker.done)
}

struct Unpacker<'a> {
    root: Arc<OwnedFd>,
    base: Base<'a>,
    known: Option<View>,
    marks: Marks,
    limits: Limits,
    done: Unpacked,
    /// Directories that were opened, by their path as written; forgotten when one may have been replaced.
    dirs: HashMap<PathBuf, Arc<OwnedFd>>,
    times: Vec<(PathBuf, Time)>,
}

const KEPT_DIRS: usize = 256;
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &TarEntry, reader: &mut TarReader<R>) -> Result<()> {
        let path = clean(&entry.name).ok_or_else(|| TreeError::entry(&entry.name, "leaves the root"))?;
        let Some(name) = path.file_name().map(OsStr::to_os_string) else {
            return self.root_entry(entry);
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = self.parent(above)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(entry, &parent, above, hidden);
        }
        if entry.kind == EntryKind::Node(Kind::Dir) {
            return self.directory(entry, &path, parent.as_fd(), &name);
        }
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(entry, &path, parent.as_fd(), &name);
        }
        self.clear(parent.as_fd(), &name, &path)?;
        let owner = Ids { uid: entry.uid, gid: entry.gid };
        match &entry.kind {
            EntryKind::Node(Kind::Symlink) => {
                if entry.link.is_empty() {
                    return Err(TreeError::entry(&entry.name, "link without a target"));
                }
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, &name).context("make link", &path)?;
                super::owner::set_node(parent.as_fd(), &name, owner).context("set owner of", &path)?;
                set_node_time(parent.as_fd(), &name, Some(entry.mtime)).context("set times of", &path)
            }
            EntryKind::Node(Kind::File) => {
                let file = create(parent.as_fd(), &name).context("create", &path)?;
                self.done.bytes += write_content(
                    reader,
                    entry,
                    file.as_fd(),
                    &path,
                    self.limits.bytes.saturating_sub(self.done.bytes),
                )
                .map_err(|e| self.blame_limit(e))?;
                set_attributes(file.as_fd(), entry, &path)?;
                rustix::fs::futimens(&file, &entry.mtime.timestamps()).context("set times of", &path)
            }
            EntryKind::Node(kind) => {
                if *kind == Kind::Char && entry.rdev == 0 {
                    return Err(TreeError::entry(&entry.name, "device with number 0:0"));
                }
                let made = make_node(parent.as_fd(), &name, *kind, entry.rdev, entry.mode, owner, Some(entry.mtime));
                match made {
                    // Users cannot make devices, and their containers have their own.
                    Err(Errno::PERM)
                        if matches!(kind, Kind::Char | Kind::Block) && super::owner::is_a_users(parent.as_fd()) =>
                    {
                        Ok(())
                    }
                    made => made.context("make", &path),
                }
            }
            EntryKind::HardLink => Ok(()),
        }
    }

    fn blame_limit(&self, e: TreeError) -> TreeError {
        match e {
            TreeError::Limit { unit, .. } => TreeError::Limit { limit: self.limits.bytes, unit },
            other => other,
        }
    }

    fn root_entry(&mut self, entry: &TarEntry) -> Result<()> {
        if entry.kind == EntryKind::Node(Kind::Dir) {
            set_attributes(self.root.as_fd(), entry, Path::new("/"))?;
            self.times.push((PathBuf::new(), entry.mtime));
            return Ok(());
        }
        Err(TreeError::entry(&entry.name, "replaces the root"))
    }

    fn directory(&mut self, entry: &TarEntry, path: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let fd = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Meta::of(&stat).is_dir() => open_dir(parent, name).context("open", path)?,
            Ok(stat) => {
                self.clear(parent, name, path)?;
                let fd = make_dir(parent, name).context("make directory", path)?;
                if Meta::of(&stat).is_whiteout() {
                    self.make_opaque(fd.as_fd(), path)?;
                }
                fd
            }
            Err(Errno::NOENT) => make_dir(parent, name).context("make directory", path)?,
            Err(e) => return Err(e).context("look up", path),
        };
        set_attributes(fd.as_fd(), entry, path)?;
        self.times.push((path.to_path_buf(), entry.mtime));
        Ok(())
    }

    fn hard_link(&mut self, entry: &TarEntry, path: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let target = clean(&entry.link).ok_or_else(|| TreeError::entry(&entry.name, "link target leaves the root"))?;
        let Some(target_name) = target.file_name() else {
            return Err(TreeError::entry(&entry.name, "hard link to the root"));
        };
        let target_dir = self.parent(target.parent().unwrap_or(Path::new("")))?;
        match rustix::fs::statat(&target_dir, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Meta::of(&stat).is_dir() => {
                return Err(TreeError::entry(&entry.name, "hard link to a directory"));
            }
            Ok(stat) if Meta::of(&stat).is_whiteout() => {
                return Err(TreeError::entry(&entry.name, "hard link to a removed file"));
            }
            Ok(stat) => {
                let same = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
                if same.is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino)) {
                    return Ok(());
                }
            }
            Err(Errno::NOENT) => self.copy_up(entry, &target, target_dir.as_fd(), target_name)?,
            Err(e) => return Err(e).context("look up", &target),
        }
        self.clear(parent, name, path)?;
        rustix::fs::linkat(&target_dir, target_name, parent, name, AtFlags::empty()).context("link", path)
    }

    /// Brings the target of a hard link up from a lower layer.
    fn copy_up(&mut self, entry: &TarEntry, target: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let view = self.base()?;
        let Some(node) = view.lookup(target, false)?.filter(|n| !n.meta.is_dir()) else {
            return Err(TreeError::entry(&entry.name, "hard link to a file that does not exist"));
        };
        let owner = Ids { uid: node.meta.uid, gid: node.meta.gid };
        match node.meta.kind {
            Kind::File => {
                let source = view.open_file(&node)?;
                let file = create(dir, name).context("create", target)?;
                let mover = super::content::Mover::default();
                mover
                    .copy(source.as_fd(), file.as_fd(), node.meta.size, node.meta.blocks)
                    .context("copy to", target)?;
                set_file(file.as_fd(), node.meta.mode, owner, None).context("set attributes of", target)?;
                set_xattrs(file.as_fd(), &view.xattrs(&node)?).context("set attributes of", target)?;
                rustix::fs::futimens(&file, &node.meta.mtime.timestamps()).context("set times of", target)
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(view.read_link(&node)?, dir, name).context("make link", target)?;
                super::owner::set_node(dir, name, owner).context("set owner of", target)?;
                set_node_time(dir, name, Some(node.meta.mtime)).context("set times of", target)
            }
            kind => make_node(dir, name, kind, node.meta.rdev, node.meta.mode, owner, Some(node.meta.mtime))
                .context("make", target),
        }
    }

    fn whiteout(&mut self, entry: &TarEntry, parent: &Arc<OwnedFd>, above: &Path, hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            return self.make_opaque(parent.as_fd(), above);
        }
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(TreeError::entry(&entry.name, "whiteout without a name"));
        }
        let name = OsStr::from_bytes(hidden);
        let path = above.join(name);
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout is about lower layers; what this layer has stays, but nothing is merged into it.
            Ok(stat) if Meta::of(&stat).is_dir() => {
                let fd = open_dir(parent.as_fd(), name).context("open", &path)?;
                self.make_opaque(fd.as_fd(), &path)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).context("hide", &path)
            }
            Err(e) => Err(e).context("look up", &path),
        }
    }

    fn make_opaque(&self, dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
        match self.marks.opaque() {
            Some(mark) => rustix::fs::fsetxattr(dir, mark, b"y", XattrFlags::empty()).context("make opaque", path),
            None => Ok(()),
        }
    }

    /// Frees a name.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => self.dirs.clear(),
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                self.dirs.clear();
                self.times.retain(|(at, _)| !at.starts_with(path));
                remove_tree(parent, name)?;
            }
            Err(e) => return Err(e).context("replace", path),
        }
        Ok(())
    }

    fn base(&mut self) -> Result<View> {
        if self.known.is_none() {
            self.known = Some((self.base)()?);
        }
        self.known.clone().ok_or_else(|| TreeError::unfit("/", "has no base"))
    }

    /// The directory at a clean path, made as needed; links are followed inside the root.
    fn parent(&mut self, path: &Path) -> Result<Arc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(fd) = self.dirs.get(path) {
            return Ok(Arc::clone(fd));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), IN_ROOT) {
            Ok(fd) => Arc::new(fd),
            // AGAIN: something was renamed while the kernel went up; in user space that does not matter.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::AGAIN) => self.make_parents(path)?,
            Err(e) => return Err(e).context("open", path),
        };
        if self.dirs.len() >= KEPT_DIRS {
            self.dirs.clear();
        }
        self.dirs.insert(path.to_path_buf(), Arc::clone(&fd));
        Ok(fd)
    }

    /// Makes the missing directories of a path, with the attributes that they have below or 0755 0:0.
    fn make_parents(&mut self, path: &Path) -> Result<Arc<OwnedFd>> {
        let here = View::of_dir(super::dir::Dir::new(
            vec![super::dir::Part { layer: 0, fd: self.root.try_clone().context("duplicate", "/")? }],
            self.marks,
        ));
        let resolved = here.resolve(path, true)?;
        if let Some(node) = resolved.node.filter(|n| !n.meta.is_dir()) {
            return Err(TreeError::unfit(node.path, "not a directory"));
        }
        let mut fd = Arc::clone(&self.root);
        let mut at = PathBuf::new();
        for name in &resolved.components {
            at.push(name);
            let next = match open_dir(fd.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::NOENT) => self.implied(fd.as_fd(), name, &at)?,
                Err(Errno::NOTDIR) => {
                    // A whiteout of this layer: the directory is new.
                    self.clear(fd.as_fd(), name, &at)?;
                    let next = make_dir(fd.as_fd(), name).context("make directory", &at)?;
                    rustix::fs::fchmod(&next, Mode::from(0o755)).context("set mode of", &at)?;
                    self.make_opaque(next.as_fd(), &at)?;
                    next
                }
                Err(e) => return Err(e).context("open", &at),
            };
            fd = Arc::new(next);
        }
        Ok(fd)
    }

    fn implied(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd> {
        let below = self.base()?.lookup(path, false)?.filter(|n| n.meta.is_dir());
        let fd = make_dir(parent, name).context("make directory", path)?;
        match below {
            Some(node) => {
                let owner = Ids { uid: node.meta.uid, gid: node.meta.gid };
                set_file(fd.as_fd(), node.meta.mode, owner, None).context("set attributes of", path)?;
                let xattrs = self.base()?.xattrs(&node)?;
                set_xattrs(fd.as_fd(), &xattrs).context("set attributes of", path)?;
                self.times.push((path.to_path_buf(), node.meta.mtime));
            }
            None => rustix::fs::fchmod(&fd, Mode::from(0o755)).context("set mode of", path)?,
        }
        Ok(fd)
    }

    /// Opens a directory that was unpacked; links on the way are followed inside the root.
    fn open_again(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), IN_ROOT) {
                Err(Errno::AGAIN) => {}
                Err(Errno::NAMETOOLONG) => return open_beneath(self.root.as_fd(), path),
                answer => return answer,
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        for (path, time) in std::mem::take(&mut self.times) {
            let set = if path.as_os_str().is_empty() {
                rustix::fs::futimens(&self.root, &time.timestamps())
            } else {
                self.open_again(&path).and_then(|fd| rustix::fs::futimens(fd, &time.timestamps()))
            };
            match set {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e).context("set times of", path),
            }
        }
        Ok(())
    }
}

/// Makes a directory and opens it.
fn make_dir(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from(0o700))?;
    open_dir(parent, name)
}

/// Owner, mode and kept attributes of an open file or directory.
pub(crate) fn set_attributes(fd: BorrowedFd<'_>, entry: &TarEntry, path: &Path) -> Result<()> {
    let owner = Ids { uid: entry.uid, gid: entry.gid };
    set_file(fd, entry.mode, owner, None).context("set attributes of", path)?;
    let kept: Vec<(OsString, Vec<u8>)> = entry
        .xattrs
        .iter()
        .filter(|(name, _)| is_kept_xattr(name))
        .map(|(name, value)| (OsString::from_vec(name.clone()), value.clone()))
        .collect();
    set_xattrs(fd, &kept).context("set attributes of", path)
}

/// Writes the content of the current entry, holes as holes. Answers the bytes of data.
pub(crate) fn write_content<R: Read>(
    reader: &mut TarReader<R>,
    entry: &TarEntry,
    file: BorrowedFd<'_>,
    path: &Path,
    allowed: u64,
) -> Result<u64> {
    let whole = [(0, entry.size)];
    let extents = entry.sparse.as_deref().unwrap_or(&whole);
    let data: u64 = extents.iter().map(|(_, length)| length).sum();
    if data > allowed {
        return Err(TreeError::Limit { limit: allowed, unit: "bytes" });
    }
    with_buffer(|room| {
        for (offset, length) in extents {
            if *offset > 0 {
                rustix::fs::seek(file, SeekFrom::Start(*offset)).context("write", path)?;
            }
            let mut left = *length;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(room.len()).min(room.len());
                let n = reader.read(&mut room[..want]).map_err(TreeError::Archive)?;
                if n == 0 {
                    return Err(TreeError::Archive(std::io::ErrorKind::UnexpectedEof.into()));
                }
                write_all(file, &room[..n]).context("write", path)?;
                left -= n as u64;
            }
        }
        Ok(())
    })?;
    if entry.sparse.is_some() {
        rustix::fs::ftruncate(file, entry.size).context("write", path)?;
    }
    Ok(data)
}

/// A name of an archive as a path below the root; none if it climbs out.
pub(crate) fn clean(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !path.pop() {
                    return None;
                }
            }
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Some(path)
}
