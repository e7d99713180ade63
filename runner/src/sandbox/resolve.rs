//! Paths inside the root, resolved by descriptor one component at a time.
//!
//! The image and earlier steps chose every name and link below the root, so no path of theirs is ever given to the
//! kernel whole without a bound. Each component is opened with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_MAGICLINKS`; links are read and followed here, with the root as `/`. That also yields the real path of
//! what was made, which the clean-up needs.

use crate::error::{During, Failure};
use crate::protocol::{Leftovers, Stub, TouchedParent};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fstat, futimens, mkdirat, openat,
    openat2, readlinkat,
};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const LINK_LIMIT: u32 = 40;
const NAME_LIMIT: usize = 255;
const PATH_LIMIT: usize = 4096;

/// What stands at the end of a path that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// A descriptor of the file system that becomes the root.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    device: u64,
}

impl Root {
    pub(crate) fn new(fd: OwnedFd) -> Result<Root, Failure> {
        let device = fstat(&fd).during(|| "look at the root file system".to_owned())?.st_dev;
        Ok(Root { fd, device })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens the mount point at `path`, making what is missing and noting it in `leftovers`.
    pub(crate) fn mount_point(&self, path: &str, kind: Kind, leftovers: &mut Leftovers) -> Result<OwnedFd, Failure> {
        self.walk(path, kind, Some(leftovers)).during(|| format!("make the mount point `{path}`"))
    }

    /// Opens the directory at `path`, making what is missing for good.
    pub(crate) fn directory(&self, path: &str) -> Result<OwnedFd, Failure> {
        self.walk(path, Kind::Directory, None).during(|| format!("make the directory `{path}`"))
    }

    fn walk(&self, path: &str, kind: Kind, mut leftovers: Option<&mut Leftovers>) -> Result<OwnedFd, Errno> {
        if path.len() > PATH_LIMIT {
            return Err(Errno::NAMETOOLONG);
        }
        let mut place = Place { root: self, stack: Vec::new() };
        let mut rest: VecDeque<String> = components(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                place.stack.pop();
                continue;
            }
            let child = match open_child(place.top(), &name) {
                Ok(child) => child,
                Err(Errno::NOENT) => {
                    let kind = if rest.is_empty() { kind } else { Kind::Directory };
                    place.make(&name, kind, leftovers.as_deref_mut())?
                }
                Err(error) => return Err(error),
            };
            match FileType::from_raw_mode(fstat(&child)?.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(&child, "", Vec::new())?;
                    let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
                    if target.starts_with('/') {
                        place.stack.clear();
                    }
                    for component in components(&target).into_iter().rev() {
                        rest.push_front(component);
                    }
                    if rest.len() > PATH_LIMIT {
                        return Err(Errno::NAMETOOLONG);
                    }
                }
                FileType::Directory => place.stack.push((child, name)),
                _ if rest.is_empty() => return Ok(child),
                _ => return Err(Errno::NOTDIR),
            }
        }
        match place.stack.pop() {
            Some((fd, _)) => Ok(fd),
            None => Ok(self.fd.try_clone().map_err(|_| Errno::MFILE)?),
        }
    }
}

/// Opens `path` inside the directory or file `root`, with it as `/`: for sources of mounts.
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return root.try_clone_to_owned().map_err(|_| Errno::MFILE);
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: something was renamed meanwhile and the kernel could not rule out an escape.
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Where a walk stands: the directories from the root down, each with its name.
struct Place<'root> {
    root: &'root Root,
    stack: Vec<(OwnedFd, String)>,
}

impl Place<'_> {
    fn top(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root.fd(), |(fd, _)| fd.as_fd())
    }

    fn path(&self, depth: usize) -> Vec<String> {
        self.stack[..depth].iter().map(|(_, name)| name.clone()).collect()
    }

    /// Makes `name` here, and puts this directory's times back when the new entry is only a stub.
    fn make(&self, name: &str, kind: Kind, leftovers: Option<&mut Leftovers>) -> Result<OwnedFd, Errno> {
        let parent = self.top();
        let before = fstat(parent)?;
        let noted = match leftovers {
            // What lies on another mount (a cache, a tmpfs) is not part of the layer.
            Some(leftovers) if before.st_dev == self.root.device => {
                self.note(name, kind, leftovers)?;
                true
            }
            _ => false,
        };
        match kind {
            Kind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?;
            }
        }
        if noted {
            let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            futimens(openat(parent, ".", readable, Mode::empty())?, &times_of(&before))?;
        }
        open_child(parent, name)
    }

    fn note(&self, name: &str, kind: Kind, leftovers: &mut Leftovers) -> Result<(), Errno> {
        for depth in 0..=self.stack.len() {
            let path = self.path(depth);
            let made = leftovers.stubs.iter().any(|stub| stub.path == path);
            if made || leftovers.parents.iter().any(|parent| parent.path == path) {
                continue;
            }
            let fd = if depth == 0 { self.root.fd() } else { self.stack[depth - 1].0.as_fd() };
            let stat = fstat(fd)?;
            leftovers.parents.push(TouchedParent {
                path,
                mode: stat.st_mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
                atime: (stat.st_atime as i64, stat.st_atime_nsec as i64),
            });
        }
        let mut path = self.path(self.stack.len());
        path.push(name.to_owned());
        leftovers.stubs.push(Stub { path, directory: kind == Kind::Directory });
        Ok(())
    }
}

fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Opens one entry as it is: a link stays a link, a mount point is crossed.
fn open_child(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    if name.len() > NAME_LIMIT {
        return Err(Errno::NAMETOOLONG);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

/// Reports the type of what `fd` stands for, without following anything.
pub(crate) fn type_of(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}
