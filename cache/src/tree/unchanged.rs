//! Whether an entry of a diff directory says what is below it anyway.
//!
//! A step that sets a mode to what it was, or gives a file a second name, makes overlayfs copy the file up. As BuildKit
//! does, a layer leaves out what has the attributes, time and content of what it covers. Times of directories do not count.

use super::content::{kept_xattrs, read_some};
use super::dir::{Dir, Entry, open_regular};
use super::error::{Context, Result};
use super::meta::{Kind, Meta};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// What a directory of a layer lies on.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    /// That is not asked: everything is written as it is.
    Unknown,
    /// No directory.
    Nothing,
    /// This directory, of which the layer's hides everything if `replaced`.
    There {
        /// What is below.
        dir: Dir,
        /// Whether names that the layer's directory does not have are gone.
        replaced: bool,
    },
}

impl Lower {
    pub(crate) fn root(dir: &Dir) -> Lower {
        match dir.is_empty() {
            true => Lower::Nothing,
            false => Lower::There { dir: dir.clone(), replaced: false },
        }
    }

    /// What the layer's directory `name` lies on, which hides it all if `opaque`.
    pub(crate) fn child(&self, name: &OsStr, opaque: bool) -> rustix::io::Result<Lower> {
        Ok(match self {
            Lower::Unknown => Lower::Unknown,
            Lower::Nothing => Lower::Nothing,
            Lower::There { dir, replaced } => match dir.child(name)? {
                Some(dir) => Lower::There { dir, replaced: *replaced || opaque },
                None => Lower::Nothing,
            },
        })
    }

    /// Takes whiteouts of what is not there out of a directory's entries, and puts those of replaced names in.
    pub(crate) fn complete(&self, entries: &mut Vec<Entry>) -> rustix::io::Result<()> {
        let (dir, replaced) = match self {
            Lower::Unknown => return Ok(()),
            Lower::Nothing => {
                entries.retain(|entry| !entry.whiteout);
                return Ok(());
            }
            Lower::There { dir, replaced } => (dir, *replaced),
        };
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            if !entry.whiteout || dir.stat(&entry.name)?.is_some() {
                kept.push(entry);
            }
        }
        if replaced {
            let mut gone = dir.entries()?;
            gone.retain(|below| kept.binary_search_by(|entry| entry.name.cmp(&below.name)).is_err());
            kept.extend(gone.into_iter().map(|below| Entry { whiteout: true, part: 0, ..below }));
            kept.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        *entries = kept;
        Ok(())
    }

    /// Whether an entry of the layer's directory, no directory itself, is the same here.
    pub(crate) fn has(&self, dir: &Dir, entry: &Entry, now: &Meta, shown: &OsStr) -> Result<bool> {
        let Lower::There { dir: lower, .. } = self else {
            return Ok(false);
        };
        let name = &entry.name;
        let Some((part, before)) = lower.stat(name).context("stat", shown)? else {
            return Ok(false);
        };
        if !same_attributes(&before, now) || before.size != now.size || before.mtime != now.mtime {
            return Ok(false);
        }
        match now.kind {
            Kind::File => {
                let (old, _) = open_regular(lower.fd(part), name, Path::new(shown))?;
                let (new, _) = open_regular(dir.fd(entry.part), name, Path::new(shown))?;
                let (old, new) = (old.as_fd(), new.as_fd());
                Ok(same_rights(old, new).context("read attributes of", shown)?
                    && same_content(old, new).context("read", shown)?)
            }
            Kind::Symlink => {
                let link = |dir: &Dir, part| dir.readlink(part, name).context("read link", shown);
                Ok(link(lower, part)? == link(dir, entry.part)?)
            }
            _ => Ok(true),
        }
    }

    /// Whether the layer's directory at this place has the same attributes.
    pub(crate) fn is_like(&self, dir: &Dir, now: &Meta, shown: &OsStr) -> Result<bool> {
        let Lower::There { dir: lower, .. } = self else {
            return Ok(false);
        };
        let (Some(old), Some(new)) = (lower.top(), dir.top()) else {
            return Ok(false);
        };
        let before = lower.meta().context("stat", shown)?;
        Ok(same_attributes(&before, now) && same_rights(old, new).context("read attributes of", shown)?)
    }
}

fn same_attributes(before: &Meta, now: &Meta) -> bool {
    let all = |meta: &Meta| (meta.kind, meta.mode, meta.uid, meta.gid, meta.rdev);
    all(before) == all(now)
}

/// Compares the one extended attribute that layers keep.
fn same_rights(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let rights = |fd| {
        let mut kept = kept_xattrs(fd)?;
        kept.retain(|(name, _)| name == "security.capability");
        Ok::<_, rustix::io::Errno>(kept)
    };
    Ok(rights(old)? == rights(new)?)
}

fn same_content(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let (read, other) = (fill(old, &mut a)?, fill(new, &mut b)?);
        if a[..read] != b[..other] {
            return Ok(false);
        }
        if read < a.len() {
            return Ok(true);
        }
    }
}

/// Reads until the room or the file ends.
fn fill(fd: BorrowedFd<'_>, room: &mut [u8]) -> rustix::io::Result<usize> {
    let mut done = 0;
    while done < room.len() {
        match read_some(fd, &mut room[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}
