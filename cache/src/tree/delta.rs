//! What a copy has to do when an earlier one by the same instruction is there: the small directory that makes the difference.
//!
//! The layer is then the list of that directory and the earlier one. Whiteouts in it hide names of the earlier copy and
//! nothing else, so they are no part of the layer; that holds because [`fits`] refuses where the tree below has such a name.

use super::dir::Entry;
use super::error::Result;
use super::listing::{Block, BlockReader, Listed, Listing};
use super::meta::{Kind, Meta};
use super::view::View;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What became of a name since the earlier copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new or another file: it is copied, with everything below.
    Copy,
    /// As `Copy`, and it was a directory before or is one now.
    Replace,
    /// A directory before and now, with changes in it or of itself.
    Enter(Changes),
    /// It is gone.
    Remove,
}

/// The changes in one directory, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub(crate) Vec<(OsString, Change)>);

impl Changes {
    /// The change of a name.
    pub(crate) fn of(&self, name: &OsStr) -> Option<&Change> {
        let at = self.0.binary_search_by(|(n, _)| n.as_bytes().cmp(name.as_bytes())).ok()?;
        Some(&self.0[at].1)
    }

    /// The names that are there now.
    pub(crate) fn to_copy(&self) -> Vec<Entry> {
        let there = self.0.iter().filter(|(_, change)| *change != Change::Remove);
        there.map(|(name, _)| Entry { name: name.clone(), part: 0, kind: None, whiteout: false }).collect()
    }
}

/// Compares two listings. None if more than `most` names have changed, or if other names are of one file than before.
pub fn changes(old: &Listing, new: &Listing, most: u64) -> Result<Option<Changes>> {
    // Else all names of such a file change together, and are copied together.
    if old.links != new.links {
        return Ok(None);
    }
    let mut comparison = Comparison { old, new, left: most };
    comparison.directory((old.root, &old.value), (new.root, &new.value))
}

struct Comparison<'a> {
    old: &'a Listing,
    new: &'a Listing,
    left: u64,
}

type Found<'a> = (Listed<'a>, Option<Block>);

impl Comparison<'_> {
    fn directory(&mut self, old: (Block, &[u8]), new: (Block, &[u8])) -> Result<Option<Changes>> {
        if old.1 == new.1 {
            return Ok(Some(Changes::default()));
        }
        let old = self.old.read(old.0, old.1)?;
        let new = self.new.read(new.0, new.1)?;
        self.names(&old, &new)
    }

    fn names(&mut self, old: &BlockReader, new: &BlockReader) -> Result<Option<Changes>> {
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        let mut changes = Changes::default();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(Some(changes)),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.name.cmp(new.name),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            let name = before.as_ref().or(after.as_ref()).map(|(listed, _)| listed.name.to_vec());
            match self.name(before, after)? {
                Said::Same => {}
                Said::TooMuch => return Ok(None),
                Said::Changed(change) => {
                    let name = OsStr::from_bytes(&name.unwrap_or_default()).to_os_string();
                    changes.0.push((name, change));
                }
            }
        }
    }

    fn name(&mut self, before: Option<Found<'_>>, after: Option<Found<'_>>) -> Result<Said> {
        let Some((after, block)) = after else {
            return Ok(self.changed(0, Change::Remove));
        };
        let cost = block.map_or(1, |block| block.below.saturating_add(1));
        if let Some((before, earlier)) = &before {
            if before.facts == after.facts {
                return Ok(Said::Same);
            }
            if let (Some(earlier), Some(block)) = (earlier, block) {
                let entered = self.directory((*earlier, before.value()), (block, after.value()))?;
                return Ok(entered.map_or(Said::TooMuch, |changes| self.changed(0, Change::Enter(changes))));
            }
        }
        let replaced = before.is_some_and(|(before, _)| (before.kind == Kind::Dir) != (after.kind == Kind::Dir));
        Ok(self.changed(cost, if replaced { Change::Replace } else { Change::Copy }))
    }

    fn changed(&mut self, cost: u64, change: Change) -> Said {
        match self.left.checked_sub(cost.max(1)) {
            Some(left) => {
                self.left = left;
                Said::Changed(change)
            }
            None => Said::TooMuch,
        }
    }
}

enum Said {
    Same,
    Changed(Change),
    TooMuch,
}

/// A destination as a copy finds it: the names that lead to it, with the attributes of the directories that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footing(Vec<(OsString, Option<Meta>)>);

impl Footing {
    /// Looks a destination up in the tree that is copied to.
    fn of(base: &View, destination: &Path) -> Result<Footing> {
        let resolved = base.resolve(destination, true)?;
        let mut path = PathBuf::new();
        let mut names = Vec::with_capacity(resolved.components.len() + 1);
        for name in std::iter::once(OsString::new()).chain(resolved.components) {
            path.push(&name);
            let found = base.lookup(&path, false)?.map(|node| node.meta);
            // What a new directory is given of the one below it.
            names.push((
                name,
                found.map(|m| Meta {
                    kind: m.kind,
                    mode: m.mode,
                    uid: m.uid,
                    gid: m.gid,
                    mtime: m.mtime,
                    ..Meta::marker()
                }),
            ));
        }
        Ok(Footing(names))
    }

    fn path(&self) -> PathBuf {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

/// True if a tree made of an earlier copy and its changes, put over `base`, shows what a new copy would.
///
/// `earlier` is the tree that the earlier copy was made over, none if it is this one.
pub fn fits(base: &View, earlier: Option<&View>, destination: &Path, changes: &Changes, all: &Listing) -> Result<bool> {
    let footing = Footing::of(base, destination)?;
    if let Some(earlier) = earlier
        && (Footing::of(earlier, destination)? != footing || !no_conflict(base, &footing.path(), all)?)
    {
        return Ok(false);
    }
    shows_nothing_hidden(base, &footing.path(), changes)
}

/// True if no directory of the listing is in the base, and nothing else stands in its way: then a copy to `destination` is the
/// same whatever the base is, except for the way there.
pub(crate) fn disjoint(base: &View, destination: &Path, all: &Listing) -> Result<bool> {
    let Some(node) = base.lookup(destination, true)? else { return Ok(true) };
    if !node.meta.is_dir() {
        return Ok(false);
    }
    let there = base.read_dir(&node)?;
    for (listed, block) in all.read(all.root, &all.value)?.iter() {
        let name = |node: &super::view::Node| node.path.file_name().unwrap_or_default().as_bytes().cmp(listed.name);
        if there.binary_search_by(name).is_ok_and(|at| block.is_some() || there[at].meta.is_dir()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True if the base has nothing where the earlier copy hides a name from it.
fn shows_nothing_hidden(base: &View, path: &Path, changes: &Changes) -> Result<bool> {
    for (name, change) in &changes.0 {
        let path = path.join(name);
        let fits = match change {
            Change::Copy => true,
            Change::Remove | Change::Replace => base.lookup(&path, false)?.is_none(),
            Change::Enter(below) => shows_nothing_hidden(base, &path, below)?,
        };
        if !fits {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True if the base has directories exactly where the listing has some, as far as both have the name.
fn no_conflict(base: &View, path: &Path, all: &Listing) -> Result<bool> {
    let mut open = vec![(path.to_path_buf(), all.root, all.value.to_vec())];
    while let Some((path, block, value)) = open.pop() {
        let Some(node) = base.lookup(&path, false)? else { continue };
        let there = base.read_dir(&node)?;
        if there.is_empty() {
            continue;
        }
        for (listed, block) in all.read(block, &value)?.iter() {
            let name = OsStr::from_bytes(listed.name);
            let at =
                there.binary_search_by(|node| node.path.file_name().unwrap_or_default().as_bytes().cmp(listed.name));
            let Ok(at) = at else { continue };
            match block {
                None if !there[at].meta.is_dir() => {}
                Some(block) if there[at].meta.is_dir() && !listed.incidental => {
                    open.push((path.join(name), block, listed.value().to_vec()));
                }
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}
