//! Writing a new diff directory on top of a base, in userspace.

use super::content::{kept_xattrs, set_xattrs, write_all};
use super::dir::{Dir, Marks, Part, open_beneath, open_dir, open_root};
use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Meta, Time};
use super::mode::ModeChange;
use super::remove::remove_tree;
use super::view::{Node, Place, View};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A user and group by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Applies file actions to a base, leaving what changes in a diff directory.
///
/// The diff directory must be new and empty; it is in overlayfs form after [`DiffWriter::finish`]. The base is only read.
/// Files of immutable views may be linked into it instead of being copied. Nothing is synced. Blocking; wide work runs on
/// the current rayon pool.
#[derive(Debug)]
pub struct DiffWriter {
    root: WriteDir,
    merged: View,
    marks: Marks,
    /// Times that directories get at the end, by path below the root.
    times: Mutex<HashMap<PathBuf, Time>>,
    pub(crate) links: super::link::Links,
    /// Each name of a file becomes a file of its own.
    pub(crate) separate: bool,
    /// When the last change of anything that was copied from a context was.
    newest: Mutex<Option<Time>>,
}

/// A directory of the diff, with what lies under it.
#[derive(Clone, Debug)]
pub(crate) struct WriteDir {
    pub(crate) fd: Arc<OwnedFd>,
    /// What the base shows at this path; empty below new directories.
    pub(crate) lower: Dir,
    /// Path below the root.
    pub(crate) path: PathBuf,
}

/// What a name in the merged tree is now.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Present {
    /// In the diff.
    Upper(Meta),
    /// In the base.
    Lower(Meta),
    /// Nowhere, but a whiteout in the diff says so.
    Whiteout,
    /// Nowhere.
    Absent,
}

impl Present {
    pub(crate) fn meta(self) -> Option<Meta> {
        match self {
            Present::Upper(meta) | Present::Lower(meta) => Some(meta),
            Present::Whiteout | Present::Absent => None,
        }
    }
}

/// How directories are made on the way to something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewDirs {
    pub(crate) mode: u32,
    pub(crate) owner: Ids,
    pub(crate) mtime: Option<Time>,
}

impl DiffWriter {
    /// Starts a diff in the empty directory `diff` over `base`. The root takes the attributes of the base's root.
    pub fn new(diff: &Path, base: &View, marks: Marks) -> Result<DiffWriter> {
        let writer = DiffWriter::open(open_root(diff)?, base, marks, true)?;
        match writer.root.lower.top() {
            Some(lower) => writer.copy_up_attributes(lower, &writer.root)?,
            None => rustix::fs::fchmod(&writer.root.fd, Mode::from(0o755)).context("set mode of", "/")?,
        }
        Ok(writer)
    }

    /// Writes straight into a directory of the user, which may hold files. Nothing of the store is linked into it: whoever
    /// writes there must not write into the store.
    pub fn onto(dir: &Path) -> Result<DiffWriter> {
        let nothing = View::of_dir(Dir::new(Vec::new(), Marks::Plain));
        DiffWriter::open(open_root(dir)?, &nothing, Marks::Plain, false)
    }

    fn open(root: OwnedFd, base: &View, marks: Marks, share: bool) -> Result<DiffWriter> {
        let mut parts = vec![Part { layer: 0, fd: root.try_clone().context("duplicate", "/")? }];
        for part in base.root().parts() {
            parts.push(Part { layer: part.layer + 1, fd: part.fd.try_clone().context("duplicate", "/")? });
        }
        Ok(DiffWriter {
            root: WriteDir { fd: Arc::new(root), lower: base.root().clone(), path: PathBuf::new() },
            merged: View::of_dir(Dir::new(parts, marks)),
            marks,
            times: Mutex::default(),
            links: super::link::Links::new(share),
            separate: false,
            newest: Mutex::default(),
        })
    }

    /// Sets the times of directories. Without it the diff is complete except for those.
    pub fn finish(self) -> Result<()> {
        let times = self.times.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (path, time) in times {
            let dir = if path.as_os_str().is_empty() {
                rustix::fs::futimens(&self.root.fd, &time.timestamps())
            } else {
                // Every component is a directory that we made.
                open_beneath(self.root.fd.as_fd(), &path).and_then(|fd| rustix::fs::futimens(fd, &time.timestamps()))
            };
            match dir {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e).context("set times of", path),
            }
        }
        Ok(())
    }

    /// The merged tree, always as it is now.
    pub fn view(&self) -> &View {
        &self.merged
    }

    /// The last change of files and directories of contexts, as far as they were copied.
    pub fn newest_source(&self) -> Option<Time> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_source(&self, changed: Time) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(Some(changed));
    }

    pub(crate) fn diff_root(&self) -> BorrowedFd<'_> {
        self.root.fd.as_fd()
    }

    pub(crate) fn set_time_later(&self, path: &Path, time: Time) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf(), time);
    }

    /// Makes a directory; parents are made as needed if `parents`, and an existing directory is taken as it is.
    pub fn mkdir(&self, path: &Path, mode: u32, parents: bool, owner: Option<Ids>, mtime: Option<Time>) -> Result<()> {
        let resolved = self.view().resolve(path, true)?;
        let new = NewDirs { mode: mode & 0o1777, owner: owner.unwrap_or_default(), mtime };
        match resolved.node {
            Some(node) if node.meta.is_dir() => return Ok(()),
            Some(_) if !parents => return Ok(()),
            Some(node) => return Err(TreeError::unfit(node.path, "not a directory")),
            None => {}
        }
        if !parents {
            let (_, above) = resolved.components.split_last().ok_or_else(|| TreeError::unfit(path, "is the root"))?;
            let above: PathBuf = above.iter().collect();
            self.view().require(above, false)?;
        }
        self.ensure(&resolved.components, new)?;
        Ok(())
    }

    /// Writes a file. Its directory must exist; a file that is there keeps its owner unless one is given.
    pub fn mkfile(&self, path: &Path, mode: u32, data: &[u8], owner: Option<Ids>, mtime: Option<Time>) -> Result<()> {
        let resolved = self.view().resolve(path, true)?;
        let (mode, owner) = match &resolved.node {
            Some(node) if node.meta.is_file() => {
                (node.meta.mode, owner.unwrap_or(Ids { uid: node.meta.uid, gid: node.meta.gid }))
            }
            Some(node) => return Err(TreeError::unfit(&node.path, "not a regular file")),
            None => (mode & 0o777, owner.unwrap_or_default()),
        };
        let (name, above) = resolved.components.split_last().ok_or_else(|| TreeError::unfit(path, "is a directory"))?;
        let dir = self.existing(above)?;
        self.write_file(&dir, name, data, mode, owner, mtime)
    }

    /// Makes a symbolic link. Its directory must exist and its name be free.
    pub fn symlink(&self, target: &OsStr, path: &Path, owner: Option<Ids>, mtime: Option<Time>) -> Result<()> {
        let resolved = self.view().resolve(path, false)?;
        if resolved.node.is_some() {
            return Err(TreeError::unfit(path, "exists"));
        }
        let (name, above) = resolved.components.split_last().ok_or_else(|| TreeError::unfit(path, "is a directory"))?;
        let dir = self.existing(above)?;
        self.make_room(&dir, name)?;
        rustix::fs::symlinkat(target, &dir.fd, name).context("make link", path)?;
        let owner = owner.unwrap_or_default();
        super::owner::set_node(dir.fd.as_fd(), name, owner).context("set owner of", path)?;
        set_node_time(dir.fd.as_fd(), name, mtime).context("set times of", path)
    }

    /// Removes a file or tree. Links in its directory are followed inside the root, it itself is not.
    ///
    /// `matcher(pattern, name)` is given for patterns, for one component at a time; no match is no error then.
    pub fn remove(&self, path: &Path, allow_missing: bool, matcher: Option<super::copy::Matcher<'_>>) -> Result<()> {
        let view = self.view();
        let paths = match matcher {
            Some(matcher) => super::select::expand(view, path, matcher, false)?,
            None => vec![path.to_path_buf()],
        };
        for path in paths {
            let resolved = view.resolve(&path, false)?;
            let Some((name, above)) = resolved.components.split_last() else {
                return Err(TreeError::unfit(&path, "the root cannot be removed"));
            };
            if resolved.node.is_none() {
                if allow_missing {
                    continue;
                }
                return Err(TreeError::not_found(&path));
            }
            let dir = self.existing(above)?;
            self.remove_name(&dir, name)?;
        }
        Ok(())
    }

    /// Takes a name out of the merged tree.
    pub(crate) fn remove_name(&self, dir: &WriteDir, name: &OsStr) -> Result<()> {
        remove_tree(dir.fd.as_fd(), name)?;
        if dir.lower.stat(name).context("look up", dir.path.join(name))?.is_some() {
            self.hide(dir, name)?;
        }
        Ok(())
    }

    /// Puts a whiteout at a free name.
    pub(crate) fn hide(&self, dir: &WriteDir, name: &OsStr) -> Result<()> {
        rustix::fs::mknodat(&dir.fd, name, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0)
            .context("hide", dir.path.join(name))
    }

    /// Writes a new regular file in place of what the name holds.
    pub(crate) fn write_file(
        &self,
        dir: &WriteDir,
        name: &OsStr,
        data: &[u8],
        mode: u32,
        owner: Ids,
        mtime: Option<Time>,
    ) -> Result<()> {
        self.make_room(dir, name)?;
        let path = dir.path.join(name);
        let file = create(dir.fd.as_fd(), name).context("create", &path)?;
        write_all(file.as_fd(), data).context("write", &path)?;
        set_file(file.as_fd(), mode, owner, mtime).context("set attributes of", &path)
    }

    /// What the name is in the merged tree.
    pub(crate) fn present(&self, dir: &WriteDir, name: &OsStr) -> Result<Present> {
        let answer = match rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let meta = self.marks.meta_at(dir.fd.as_fd(), name, &stat).context("look up", dir.path.join(name))?;
                Ok(if meta.is_whiteout() { Present::Whiteout } else { Present::Upper(meta) })
            }
            Err(Errno::NOENT) => {
                dir.lower.stat(name).map(|l| l.map_or(Present::Absent, |(_, meta)| Present::Lower(meta)))
            }
            Err(e) => Err(e),
        };
        answer.context("look up", dir.path.join(name))
    }

    /// Frees a name for something that is no directory.
    pub(crate) fn make_room(&self, dir: &WriteDir, name: &OsStr) -> Result<()> {
        match self.present(dir, name)? {
            Present::Upper(meta) | Present::Lower(meta) if meta.is_dir() => {
                Err(TreeError::unfit(dir.path.join(name), "cannot replace directory with file"))
            }
            Present::Upper(_) | Present::Whiteout => {
                rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()).context("replace", dir.path.join(name))
            }
            Present::Lower(_) | Present::Absent => Ok(()),
        }
    }

    /// Frees a name, whatever it holds; a directory goes with all that is in it.
    pub(crate) fn remove_for(&self, dir: &WriteDir, name: &OsStr) -> Result<()> {
        match self.present(dir, name)? {
            Present::Upper(_) | Present::Whiteout => remove_tree(dir.fd.as_fd(), name),
            Present::Lower(_) | Present::Absent => Ok(()),
        }
    }

    /// The directory at link-free `components`, made as needed.
    pub(crate) fn ensure(&self, components: &[OsString], new: NewDirs) -> Result<WriteDir> {
        let mut dir = self.root.clone();
        for name in components {
            dir = self.enter(&dir, name, Some(new))?.0;
        }
        Ok(dir)
    }

    /// The existing directory at link-free `components`, copied up.
    pub(crate) fn existing(&self, components: &[OsString]) -> Result<WriteDir> {
        let mut dir = self.root.clone();
        for name in components {
            dir = self.enter(&dir, name, None)?.0;
        }
        Ok(dir)
    }

    /// A sub-directory for writing: copied up from the base, or made if `new`. True if it was made.
    pub(crate) fn enter(&self, dir: &WriteDir, name: &OsStr, new: Option<NewDirs>) -> Result<(WriteDir, bool)> {
        let path = dir.path.join(name);
        match self.present(dir, name)? {
            Present::Upper(meta) if meta.is_dir() => {
                let fd = open_dir(dir.fd.as_fd(), name).context("open", &path)?;
                let opaque = self.marks.opaque().map_or(Ok(None), |mark| super::dir::xattr(fd.as_fd(), mark));
                let opaque = opaque.context("read attributes of", &path)?.is_some();
                let below = if opaque { None } else { dir.lower.child(name).context("open", &path)? };
                Ok((WriteDir { fd: Arc::new(fd), lower: below.unwrap_or_else(|| self.nothing()), path }, false))
            }
            Present::Lower(meta) if meta.is_dir() => {
                let below = dir.lower.child(name).context("open", &path)?.unwrap_or_else(|| self.nothing());
                let child = self.make(dir, name, path, below)?;
                if let Some(lower) = child.lower.top() {
                    self.copy_up_attributes(lower, &child)?;
                }
                Ok((child, false))
            }
            Present::Upper(_) | Present::Lower(_) => Err(TreeError::unfit(path, "not a directory")),
            absent => {
                let Some(new) = new else {
                    return Err(TreeError::not_found(path));
                };
                let was_hidden = matches!(absent, Present::Whiteout);
                if was_hidden {
                    rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()).context("replace", &path)?;
                }
                let child = self.make(dir, name, path, self.nothing())?;
                if was_hidden && let Some(mark) = self.marks.opaque() {
                    rustix::fs::fsetxattr(&child.fd, mark, b"y", XattrFlags::empty())
                        .context("make opaque", &child.path)?;
                }
                set_file(child.fd.as_fd(), new.mode, new.owner, None).context("set attributes of", &child.path)?;
                if let Some(mtime) = new.mtime {
                    self.set_time_later(&child.path, mtime);
                }
                Ok((child, true))
            }
        }
    }

    fn nothing(&self) -> Dir {
        Dir::new(Vec::new(), self.marks)
    }

    fn make(&self, dir: &WriteDir, name: &OsStr, path: PathBuf, lower: Dir) -> Result<WriteDir> {
        rustix::fs::mkdirat(&dir.fd, name, Mode::from(0o700)).context("make directory", &path)?;
        let fd = open_dir(dir.fd.as_fd(), name).context("open", &path)?;
        Ok(WriteDir { fd: Arc::new(fd), lower, path })
    }

    fn copy_up_attributes(&self, from: BorrowedFd<'_>, to: &WriteDir) -> Result<()> {
        let meta = self.marks.meta_of(from).context("stat", &to.path)?;
        let xattrs = kept_xattrs(from).context("read attributes of", &to.path)?;
        let owner = Ids { uid: meta.uid, gid: meta.gid };
        set_file(to.fd.as_fd(), meta.mode, owner, None).context("set attributes of", &to.path)?;
        set_xattrs(to.fd.as_fd(), &xattrs).context("set attributes of", &to.path)?;
        self.set_time_later(&to.path, meta.mtime);
        Ok(())
    }
}

impl ModeChange {
    pub(crate) fn new_dirs(change: Option<&ModeChange>, owner: Option<Ids>, mtime: Option<Time>) -> NewDirs {
        NewDirs { mode: change.map_or(0o755, ModeChange::for_parents), owner: owner.unwrap_or_default(), mtime }
    }
}

/// Creates a file that must not exist.
pub(crate) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from(0o600))
}

/// Sets owner, then mode (chown clears setuid), then time of an open file or directory.
pub(crate) fn set_file(fd: BorrowedFd<'_>, mode: u32, owner: Ids, mtime: Option<Time>) -> rustix::io::Result<()> {
    super::owner::set(fd, owner)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    match mtime {
        Some(time) => rustix::fs::futimens(fd, &time.timestamps()),
        None => Ok(()),
    }
}

/// Sets the time of a link or special file.
pub(crate) fn set_node_time(dir: BorrowedFd<'_>, name: &OsStr, mtime: Option<Time>) -> rustix::io::Result<()> {
    match mtime {
        Some(time) => rustix::fs::utimensat(dir, name, &time.timestamps(), AtFlags::SYMLINK_NOFOLLOW),
        None => Ok(()),
    }
}

/// Makes a device node, pipe or socket in a directory that nobody else writes to.
pub(crate) fn make_node(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    rdev: u64,
    mode: u32,
    owner: Ids,
    mtime: Option<Time>,
) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dir, name, kind.file_type(), Mode::from(0o600), rdev)?;
    super::owner::set_node(dir, name, owner)?;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    set_node_time(dir, name, mtime)
}

/// The parent and name of a node that is no directory.
pub(crate) fn named(node: &Node) -> Option<(&Dir, usize, &OsStr)> {
    match &node.place {
        Place::Name { parent, part, name } => Some((parent, *part, name)),
        Place::Dir(_) => None,
    }
}

/// The last component of a path as bytes.
pub(crate) fn base_name(path: &Path) -> Option<&OsStr> {
    path.file_name().filter(|n| !n.as_bytes().is_empty())
}
