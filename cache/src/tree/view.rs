//! A merged, read-only view over diff directories or over a build context.

use super::dir::{Dir, MAX_DEPTH, Marks, Part, open_regular, open_root};
use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Meta};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an ignore rule says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// It is there.
    Visible,
    /// It is not there, nor is anything below it.
    Hidden,
    /// A directory that exists only if something below it is visible.
    HiddenButDescend,
}

/// Ignore rules: path relative to the root, without a leading slash, and whether it is a directory.
pub type Filter = Arc<dyn Fn(&Path, bool) -> Visibility + Send + Sync>;

/// Links followed in one look-up; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// A read view. Cloning is cheap.
#[derive(Clone)]
pub struct View {
    root: Dir,
    context: bool,
    filter: Option<Filter>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("context", &self.context)
            .field("filtered", &self.filter.is_some())
            .finish_non_exhaustive()
    }
}

/// Something found in a [`View`].
#[derive(Clone, Debug)]
pub struct Node {
    /// Resolved path below the root, without a leading slash; empty for the root.
    pub path: PathBuf,
    /// Its attributes.
    pub meta: Meta,
    pub(crate) place: Place,
}

/// How to reach a node again.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The directory itself.
    Dir(Dir),
    /// A name in a directory.
    Name { parent: Dir, part: usize, name: OsString },
}

/// A path with all links but perhaps the last resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Components below the root, free of links and dots.
    pub(crate) components: Vec<OsString>,
    /// What is there.
    pub(crate) node: Option<Node>,
}

impl View {
    /// A view over diff directories, the topmost first. No directories at all make an empty root.
    pub fn layers<P: AsRef<Path>>(dirs: &[P], marks: Marks) -> Result<View> {
        let mut parts = Vec::with_capacity(dirs.len());
        for (layer, dir) in dirs.iter().enumerate() {
            parts.push(Part { layer, fd: open_root(dir.as_ref())? });
        }
        Ok(View { root: Dir::new(parts, marks), context: false, filter: None })
    }

    /// A view of a directory that is not ours: owners read as 0:0, `filter` hides paths, and files may change under us.
    pub fn context(dir: &Path, filter: Option<Filter>) -> Result<View> {
        let part = Part { layer: 0, fd: open_root(dir)? };
        Ok(View { root: Dir::new(vec![part], Marks::Plain), context: true, filter })
    }

    pub(crate) fn of_dir(root: Dir) -> View {
        View { root, context: false, filter: None }
    }

    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// True if the files never change, so that their inodes can be shared.
    pub(crate) fn immutable(&self) -> bool {
        !self.context
    }

    /// What the ignore rules say.
    pub(crate) fn visibility(&self, path: &Path, is_dir: bool) -> Visibility {
        match &self.filter {
            Some(filter) if !path.as_os_str().is_empty() => match filter(path, is_dir) {
                Visibility::HiddenButDescend if !is_dir => Visibility::Hidden,
                said => said,
            },
            _ => Visibility::Visible,
        }
    }

    /// Attributes as this view shows them.
    pub(crate) fn shown(&self, mut meta: Meta) -> Meta {
        if self.context {
            (meta.uid, meta.gid) = (0, 0);
            if meta.kind == Kind::Block {
                // What BuildKit's transfer of contexts makes of them.
                meta.kind = Kind::Char;
            }
        }
        meta
    }

    /// Finds a path. Links in its directories are followed inside the root, the last component if `follow`.
    ///
    /// Absolute targets start at the root and `..` stays there. More than 40 links are an error.
    pub fn lookup(&self, path: impl AsRef<Path>, follow: bool) -> Result<Option<Node>> {
        Ok(self.resolve(path.as_ref(), follow)?.node)
    }

    /// As [`View::lookup`], with an error for absence.
    pub fn require(&self, path: impl AsRef<Path>, follow: bool) -> Result<Node> {
        self.lookup(&path, follow)?.ok_or_else(|| TreeError::not_found(path))
    }

    /// Resolves links even where the end of the path does not exist.
    pub(crate) fn resolve(&self, path: &Path, follow: bool) -> Result<Resolved> {
        let mut todo: VecDeque<OsString> = split(path.as_os_str());
        let mut done: Vec<(OsString, Dir)> = Vec::new();
        let mut missing: Vec<OsString> = Vec::new();
        let mut last: Option<Node> = None;
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                if missing.pop().is_none() {
                    done.pop();
                }
                last = None;
                continue;
            }
            if !missing.is_empty() {
                missing.push(name);
                last = None;
                continue;
            }
            let parent = done.last().map_or(&self.root, |(_, dir)| dir);
            let here = join(&done, &name);
            let found = parent.stat(&name).context("look up", &here)?;
            let found = found.filter(|(_, meta)| self.visibility(&here, meta.is_dir()) != Visibility::Hidden);
            let Some((part, meta)) = found else {
                missing.push(name);
                continue;
            };
            if meta.kind == Kind::Symlink && (follow || !todo.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(TreeError::unfit(path, "too many levels of symbolic links"));
                }
                let target = parent.readlink(part, &name).context("read link", &here)?;
                if target.as_bytes().first() == Some(&b'/') {
                    done.clear();
                }
                for piece in split(&target).into_iter().rev() {
                    todo.push_front(piece);
                }
                continue;
            }
            if meta.is_dir() {
                if done.len() >= MAX_DEPTH {
                    return Err(TreeError::unfit(path, "nested too deeply"));
                }
                if let Some(dir) = parent.child_from(&name, part).context("open", &here)? {
                    done.push((name, dir));
                    continue;
                }
                missing.push(name);
                continue;
            }
            let place = Place::Name { parent: parent.clone(), part, name: name.clone() };
            last = Some(Node { path: here, meta: self.shown(meta), place });
            missing.push(name);
        }
        let node = match last {
            Some(node) => Some(node),
            None if !missing.is_empty() => None,
            None => {
                let dir = done.last().map_or(&self.root, |(_, dir)| dir).clone();
                let path: PathBuf = done.iter().map(|(name, _)| name).collect();
                match dir.meta() {
                    Ok(meta) => Some(Node { meta: self.shown(meta), path, place: Place::Dir(dir) }),
                    Err(_) if done.is_empty() => None,
                    Err(e) => return Err(e).context("stat", path),
                }
            }
        };
        let components = done.into_iter().map(|(name, _)| name).chain(missing).collect();
        Ok(Resolved { components, node })
    }

    /// Names and attributes below a directory, sorted. Directories that ignore rules keep only for what is below them are listed.
    pub fn read_dir(&self, node: &Node) -> Result<Vec<Node>> {
        let dir = self.open_dir(node)?;
        let mut nodes = Vec::new();
        for entry in dir.entries().context("list", &node.path)? {
            let path = node.path.join(&entry.name);
            let Some(meta) = dir.stat_entry(&entry).context("stat", &path)? else {
                continue;
            };
            if self.visibility(&path, meta.is_dir()) != Visibility::Hidden {
                let place = Place::Name { parent: dir.clone(), part: entry.part, name: entry.name };
                nodes.push(Node { path, meta: self.shown(meta), place });
            }
        }
        Ok(nodes)
    }

    /// Opens a directory that was found.
    pub(crate) fn open_dir(&self, node: &Node) -> Result<Dir> {
        let found = match &node.place {
            Place::Dir(dir) => Some(dir.clone()),
            Place::Name { parent, part, name } => parent.child_from(name, *part).context("open", &node.path)?,
        };
        found.ok_or_else(|| TreeError::unfit(&node.path, "not a directory"))
    }

    /// Opens a regular file for reading. A link or special file that took its place is refused.
    pub fn open_file(&self, node: &Node) -> Result<File> {
        let Place::Name { parent, part, name } = &node.place else {
            return Err(TreeError::unfit(&node.path, "is a directory"));
        };
        Ok(open_regular(parent.fd(*part), name, &node.path)?.0.into())
    }

    /// Target of a symbolic link.
    pub fn read_link(&self, node: &Node) -> Result<OsString> {
        match &node.place {
            Place::Name { parent, part, name } => parent.readlink(*part, name).context("read link", &node.path),
            Place::Dir(_) => Err(TreeError::unfit(&node.path, "is a directory")),
        }
    }

    /// Extended attributes of a file or directory that belong to the image: `security.capability` and `user.*`.
    ///
    /// A context has none: attributes do not survive its transfer to a builder.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<(OsString, Vec<u8>)>> {
        if self.context {
            return Ok(Vec::new());
        }
        let attributes = match node.meta.kind {
            Kind::Dir => match self.open_dir(node)?.top() {
                Some(fd) => super::content::kept_xattrs(fd),
                None => return Ok(Vec::new()),
            },
            Kind::File => super::content::kept_xattrs(self.open_file(node)?.as_fd()),
            _ => return Ok(Vec::new()),
        };
        attributes.context("read attributes of", &node.path)
    }

    /// Content of a file of at most `max` bytes, links followed. None if it is absent.
    ///
    /// For `/etc/passwd` and its like: anything but a regular file and anything longer is an error; it never waits.
    pub fn read_small(&self, path: impl AsRef<Path>, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(node) = self.lookup(&path, true)? else {
            return Ok(None);
        };
        if !node.meta.is_file() {
            return Err(TreeError::unfit(path, "not a regular file"));
        }
        let mut content = Vec::new();
        let file = self.open_file(&node)?;
        file.take(max.saturating_add(1)).read_to_end(&mut content).context("read", &path)?;
        if content.len() as u64 > max {
            return Err(TreeError::unfit(path, "too large"));
        }
        Ok(Some(content))
    }
}

fn join(done: &[(OsString, Dir)], name: &OsStr) -> PathBuf {
    done.iter().map(|(name, _)| name.as_os_str()).chain([name]).collect()
}

/// Components of a path without empty ones and `.`.
pub(crate) fn split(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|b| *b == b'/')
        .filter(|c| !c.is_empty() && *c != b".")
        .map(|c| OsStr::from_bytes(c).to_os_string())
        .collect()
}
