//! Layer tars and root tars.

use super::content::{kept_xattrs, read_some, with_buffer};
use super::dir::{Dir, Entry, MAX_DEPTH, Marks, Part, open_regular, open_root};
use super::error::{Context, Result, TreeError};
use super::link::FileId;
use super::meta::{Kind, Meta};
use super::tar_write::{Header, flag, write_end, write_header, write_padding};
use super::unchanged::Lower;
use super::view::View;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// How a tar is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct TarOptions {
    /// Latest modification time, in seconds; later ones become this (rewrite-timestamp).
    pub clamp: Option<i64>,
}

/// Writes diff directories, topmost first, as one layer.
///
/// Marks in the lowest directory are the layer's. Those in the others hide what the layer's lower directories hold, and no
/// more: they are not written. Entries are sorted, directories before their content, times are whole seconds, owners are numbers. The same directories
/// give the same bytes, on every machine.
pub fn write_layer<P: AsRef<Path>>(dirs: &[P], marks: Marks, options: TarOptions, out: &mut impl Write) -> Result<()> {
    write(dirs, marks, Lower::Unknown, options, out)
}

/// As [`write_layer`], without what says the same as what lies below; what hides a whole directory names what it hides.
pub fn write_changes<P: AsRef<Path>>(
    dirs: &[P],
    marks: Marks,
    base: &View,
    options: TarOptions,
    out: &mut impl Write,
) -> Result<()> {
    write(dirs, marks, Lower::root(base.root()), options, out)
}

fn write<P: AsRef<Path>>(
    dirs: &[P],
    marks: Marks,
    base: Lower,
    options: TarOptions,
    out: &mut impl Write,
) -> Result<()> {
    let mut parts = Vec::with_capacity(dirs.len());
    for (layer, dir) in dirs.iter().enumerate() {
        parts.push(Part { layer, fd: open_root(dir.as_ref())? });
    }
    let lowest = dirs.len().saturating_sub(1);
    TarWriter { out, options, lowest: Some(lowest), links: HashMap::new() }.run(Dir::new(parts, marks), base)
}

/// Writes everything that a view shows, as `type=tar` does.
pub fn write_root(view: &View, clamp: Option<i64>, out: &mut impl Write) -> Result<()> {
    let options = TarOptions { clamp };
    let root = view.root().clone();
    TarWriter { out, options, lowest: None, links: HashMap::new() }.run(root, Lower::Unknown)
}

struct TarWriter<'a, W> {
    out: &'a mut W,
    options: TarOptions,
    /// The diff directory whose marks are written; none of a whole root, where nothing is hidden.
    lowest: Option<usize>,
    /// First name of every file with several.
    links: HashMap<FileId, Vec<u8>>,
}

/// A directory whose entries are being written.
struct Level {
    dir: Dir,
    /// What it lies on.
    lower: Lower,
    /// Length of the path of the directory, with its slash.
    path: usize,
    /// Its own entry, as long as nothing was written that needs it.
    waiting: Option<Own>,
    entries: std::vec::IntoIter<Entry>,
}

/// What is written of a directory itself.
struct Own {
    meta: Meta,
    xattrs: Vec<(OsString, Vec<u8>)>,
    /// Whether the layer's tar says that it hides what is below the layer.
    opaque: bool,
}

impl<W: Write> TarWriter<'_, W> {
    fn run(mut self, root: Dir, base: Lower) -> Result<()> {
        let mut path: Vec<u8> = Vec::new();
        let mut levels = Vec::new();
        if !root.is_empty() {
            levels.push(self.level(root, base, &path, None)?);
        }
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path);
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            path.extend_from_slice(entry.name.as_bytes());
            if let Some(below) = self.entry(&mut levels, &entry, &mut path)? {
                if levels.len() > MAX_DEPTH {
                    return Err(TreeError::unfit(OsStr::from_bytes(&path), "nested too deeply"));
                }
                levels.push(below);
            }
        }
        write_end(self.out).map_err(TreeError::Output)
    }

    fn level(&self, dir: Dir, lower: Lower, path: &[u8], waiting: Option<Own>) -> Result<Level> {
        let mut entries = dir.entries_with_whiteouts().context("list", OsStr::from_bytes(path))?;
        entries.retain(|entry| !entry.whiteout || Some(dir.parts()[entry.part].layer) == self.lowest);
        lower.complete(&mut entries).context("list", OsStr::from_bytes(path))?;
        Ok(Level { dir, lower, path: path.len(), waiting, entries: entries.into_iter() })
    }

    /// Writes one entry of the last level. For a directory the answer is its level.
    fn entry(&mut self, levels: &mut [Level], entry: &Entry, path: &mut Vec<u8>) -> Result<Option<Level>> {
        let shown = OsString::from_vec(path.clone());
        let Some(Level { dir, lower, .. }) = levels.last() else {
            return Ok(None);
        };
        let (dir, lower) = (dir.clone(), lower.clone());
        if entry.whiteout {
            self.parents(levels, path)?;
            self.whiteout(entry, path)?;
            return Ok(None);
        }
        if self.lowest.is_some() && entry.name.as_bytes().starts_with(b".wh.") {
            return Err(TreeError::unfit(shown, "the name cannot be kept in a layer"));
        }
        let Some(meta) = dir.stat_entry(entry).context("stat", &shown)? else {
            return Err(TreeError::not_found(shown));
        };
        match meta.kind {
            Kind::Socket => Ok(None),
            Kind::Dir => {
                let Some(below) = dir.child_from(&entry.name, entry.part).context("open", &shown)? else {
                    return Err(TreeError::not_found(shown));
                };
                path.push(b'/');
                let opaque = self.hides(&below).context("read attributes of", &shown)?;
                let lower = lower.child(&entry.name, opaque).context("open", &shown)?;
                let xattrs = below.top().map(|fd| self.xattrs(fd, &shown)).transpose()?.unwrap_or_default();
                let opaque = opaque && matches!(lower, Lower::Unknown);
                let changed = !lower.is_like(&below, &meta, &shown)?;
                let mut level = self.level(below, lower, path, Some(Own { meta, xattrs, opaque }))?;
                if changed {
                    self.parents(levels, path)?;
                    self.own(&mut level, path)?;
                }
                Ok(Some(level))
            }
            _ => {
                if !lower.has(&dir, entry, &meta, &shown)? {
                    self.parents(levels, path)?;
                    self.file(&dir, entry, path, &meta, &shown)?;
                }
                Ok(None)
            }
        }
    }

    /// Whether a directory of the layer hides what is below the layer.
    fn hides(&self, dir: &Dir) -> rustix::io::Result<bool> {
        match dir.parts().last() {
            Some(part) if Some(part.layer) == self.lowest => dir.is_opaque(part.fd.as_fd()),
            _ => Ok(false),
        }
    }

    /// Writes the directories that lead to an entry, where that was not done.
    fn parents(&mut self, levels: &mut [Level], path: &[u8]) -> Result<()> {
        levels.iter_mut().try_for_each(|level| self.own(level, path))
    }

    fn own(&mut self, level: &mut Level, path: &[u8]) -> Result<()> {
        let Some(own) = level.waiting.take() else {
            return Ok(());
        };
        let path = &path[..level.path];
        self.header(path, &own.meta, b'5', 0, b"", &own.xattrs)?;
        if own.opaque { self.opaque(path) } else { Ok(()) }
    }

    fn file(&mut self, dir: &Dir, entry: &Entry, path: &[u8], meta: &Meta, shown: &OsStr) -> Result<()> {
        if meta.nlink > 1 {
            let id = (dir.parts()[entry.part].layer, meta.dev, meta.ino);
            if let Some(first) = self.links.get(&id).cloned() {
                return self.header(path, meta, b'1', 0, &first, &[]);
            }
            self.links.insert(id, path.to_vec());
        }
        match meta.kind {
            Kind::File => {
                let (file, now) = open_regular(dir.fd(entry.part), &entry.name, Path::new(shown))?;
                let xattrs = self.xattrs(file.as_fd(), shown)?;
                self.header(path, meta, b'0', now.size, b"", &xattrs)?;
                self.content(file.as_fd(), now.size, shown)
            }
            Kind::Symlink => {
                let target = dir.readlink(entry.part, &entry.name).context("read link", shown)?;
                self.header(path, meta, b'2', 0, target.as_bytes(), &[])
            }
            kind => self.header(path, meta, flag(kind), 0, b"", &[]),
        }
    }

    /// Attributes that go into a layer: `user.*` ones do not.
    fn xattrs(&self, fd: BorrowedFd<'_>, shown: &OsStr) -> Result<Vec<(OsString, Vec<u8>)>> {
        let mut kept = kept_xattrs(fd).context("read attributes of", shown)?;
        kept.retain(|(name, _)| name == "security.capability");
        Ok(kept)
    }

    fn header(
        &mut self,
        name: &[u8],
        meta: &Meta,
        flag: u8,
        size: u64,
        link: &[u8],
        xattrs: &[(OsString, Vec<u8>)],
    ) -> Result<()> {
        let mtime = self.options.clamp.map_or(meta.mtime.seconds, |latest| meta.mtime.seconds.min(latest));
        let header = Header { name, meta, flag, size, link, mtime, xattrs };
        write_header(self.out, &header).map_err(TreeError::Output)
    }

    fn content(&mut self, file: BorrowedFd<'_>, size: u64, shown: &OsStr) -> Result<()> {
        with_buffer(|room| {
            let mut left = size;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(room.len()).min(room.len());
                let n = read_some(file, &mut room[..want]).context("read", shown)?;
                if n == 0 {
                    return Err(TreeError::unfit(shown, "became shorter while it was read"));
                }
                self.out.write_all(&room[..n]).map_err(TreeError::Output)?;
                left -= n as u64;
            }
            write_padding(self.out, size).map_err(TreeError::Output)
        })
    }

    fn whiteout(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        let at = path.len() - entry.name.len();
        let name = [&path[..at], b".wh.", &path[at..]].concat();
        self.marker(&name)
    }

    /// The mark comes first in its directory, so that a reader knows before it merges.
    fn opaque(&mut self, path: &[u8]) -> Result<()> {
        self.marker(&[path, b".wh..wh..opq"].concat())
    }

    /// An empty file with fixed attributes.
    fn marker(&mut self, name: &[u8]) -> Result<()> {
        let meta = Meta::marker();
        self.header(name, &meta, b'0', 0, b"", &[])
    }
}
