//! Steps without overlayfs: a plain copy of the root, and afterwards the diff directory that overlayfs would have made.
//!
//! Everything in the copy has a change time of its copying at the latest, so what has a later one was touched by the step.
//! That is how overlayfs sees it, too: what is opened for writing, linked or given new attributes is copied up, equal or not.

use super::content::{kept_xattrs, set_xattrs};
use super::dir::{Dir, MAX_DEPTH, Marks, list, open_dir, open_root};
use super::error::{Context, Result, TreeError};
use super::flatten::{Fill, flatten};
use super::index::clock;
use super::meta::{Meta, Time};
use super::view::View;
use super::writer::{Ids, set_file};
use rustix::fs::{AtFlags, FileType, Mode, StatxFlags, XattrFlags};
use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Copies everything that a view shows into the empty directory `to`. What is changed there from now on has a later time than
/// the answer.
pub fn copy_out(view: &View, to: &Path) -> Result<Time> {
    flatten(view, to, Fill::Copy)?;
    let done = clock(to)?;
    // The file system's clock has steps of some milliseconds.
    while clock(to)? == done {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(done)
}

/// Moves what was changed in `root` after `since`, when it was a copy of `base`, into the empty directory `diff`.
pub fn take_changes(base: &View, root: &Path, since: Time, diff: &Path, marks: Marks) -> Result<()> {
    let from = open_root(root)?;
    let diff = Made { above: None, name: OsStr::new(""), fd: OnceCell::from(open_root(diff)?) };
    let meta = marks.meta_of(from.as_fd()).context("stat", "/")?;
    let taking = Taking { since, marks };
    taking.directory(base.root(), from.as_fd(), &diff, Path::new(""), 0)?;
    give_attributes(from.as_fd(), &meta, diff.fd()?, Path::new("/"))
}

struct Taking {
    since: Time,
    marks: Marks,
}

/// A directory of the diff, made when the first thing goes into it.
struct Made<'a> {
    above: Option<&'a Made<'a>>,
    name: &'a OsStr,
    fd: OnceCell<OwnedFd>,
}

impl Made<'_> {
    fn fd(&self) -> Result<BorrowedFd<'_>> {
        if self.fd.get().is_none()
            && let Some(above) = self.above
        {
            let above = above.fd()?;
            rustix::fs::mkdirat(above, self.name, Mode::from(0o700)).context("make directory", self.name)?;
            let _ = self.fd.set(open_dir(above, self.name).context("open", self.name)?);
        }
        self.fd.get().map(AsFd::as_fd).ok_or_else(|| TreeError::unfit(self.name, "has no directory"))
    }
}

impl Taking {
    /// Goes through the names of a directory that both have.
    fn directory(&self, base: &Dir, from: BorrowedFd<'_>, to: &Made<'_>, path: &Path, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(TreeError::unfit(path, "nested too deeply"));
        }
        let mut names: Vec<OsString> = Vec::new();
        list(from, |name, _| names.push(name.to_os_string())).context("list", path)?;
        names.sort_unstable();
        for entry in base.entries().context("list", path)? {
            if names.binary_search(&entry.name).is_err() {
                let device = FileType::CharacterDevice;
                rustix::fs::mknodat(to.fd()?, &entry.name, device, Mode::empty(), 0).context("hide", &entry.name)?;
            }
        }
        for name in names {
            self.name(base, from, &name, to, &path.join(&name), depth)?;
        }
        Ok(())
    }

    fn name(
        &self,
        base: &Dir,
        from: BorrowedFd<'_>,
        name: &OsStr,
        to: &Made<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<()> {
        let now = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW);
        let now = now.and_then(|stat| self.marks.meta_at(from, name, &stat)).context("stat", path)?;
        let before = base.stat(name).context("look up", path)?.map(|(_, meta)| meta);
        let touched = now.ctime > self.since;
        let directories = before.is_some_and(|before| before.is_dir()) && now.is_dir();
        if directories && !(touched && self.is_new(from, name).context("stat", path)?) {
            let Some(below) = base.child(name).context("open", path)? else {
                return Err(TreeError::not_found(path));
            };
            let dir = open_dir(from, name).context("open", path)?;
            let child = Made { above: Some(to), name, fd: OnceCell::new() };
            if touched && !same_attributes(&below, &now, dir.as_fd()).context("read attributes of", path)? {
                child.fd()?;
            }
            self.directory(&below, dir.as_fd(), &child, path, depth + 1)?;
            return match child.fd.get() {
                Some(made) => give_attributes(dir.as_fd(), &now, made.as_fd(), path),
                None => Ok(()),
            };
        }
        if before.is_some() && !touched {
            return Ok(());
        }
        rustix::fs::renameat(from, name, to.fd()?, name).context("take", path)?;
        if now.is_dir() && before.is_some() {
            self.make_opaque(to.fd()?, name).context("make opaque", path)?;
        }
        Ok(())
    }

    /// True if the directory was made by the step, in place of one that it removed.
    fn is_new(&self, from: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<bool> {
        let stat = rustix::fs::statx(from, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME)?;
        let born = Time { seconds: stat.stx_btime.tv_sec, nanos: stat.stx_btime.tv_nsec };
        // Without times of birth, names that are gone are hidden one by one.
        Ok(stat.stx_mask & StatxFlags::BTIME.bits() != 0 && born > self.since)
    }

    fn make_opaque(&self, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
        match self.marks.opaque() {
            Some(mark) => rustix::fs::fsetxattr(open_dir(dir, name)?, mark, b"y", XattrFlags::empty()),
            None => Ok(()),
        }
    }
}

/// True if a directory says nothing that the one below does not say.
fn same_attributes(base: &Dir, now: &Meta, dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let before = base.meta()?;
    let all = |m: &Meta| (m.mode, m.uid, m.gid, m.mtime);
    let xattrs = base.top().map(kept_xattrs).transpose()?.unwrap_or_default();
    Ok(all(&before) == all(now) && kept_xattrs(dir)? == xattrs)
}

fn give_attributes(from: BorrowedFd<'_>, meta: &Meta, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let owner = Ids { uid: meta.uid, gid: meta.gid };
    let xattrs = kept_xattrs(from).context("read attributes of", path)?;
    set_xattrs(to, &xattrs).context("set attributes of", path)?;
    set_file(to, meta.mode, owner, Some(meta.mtime)).context("set attributes of", path)
}
