//! Files to a tar and back, for copies between containers and the host.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};

/// Writes the file or directory at `path` as a tar in which it is called `name`; `.` stands for a directory's content.
pub fn pack(path: &Path, name: &Path, follow: bool, out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match path.file_name().filter(|_| !ends_in_dot(path)) {
        Some(own) => {
            let parent = openat(CWD, parent, flags, Mode::empty())?;
            add(&mut builder, parent.as_fd(), Path::new(own), name, follow)?;
        }
        None => {
            let directory = openat(CWD, path, flags, Mode::empty())?;
            add(&mut builder, directory.as_fd(), Path::new("."), name, true)?;
        }
    }
    builder.into_inner()?.flush()
}

/// Whether a path asks for the content of a directory: `x/.`.
#[must_use]
pub fn ends_in_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/.") || bytes == b"."
}

fn add(
    builder: &mut Builder<impl Write>,
    parent: BorrowedFd<'_>,
    own: &Path,
    name: &Path,
    follow: bool,
) -> io::Result<()> {
    let at = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let about = statat(parent, own, at)?;
    let mut header = header(&about)?;
    let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    match FileType::from_raw_mode(about.st_mode) {
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, name, io::empty())?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | nofollow;
            let directory = openat(parent, own, flags, Mode::empty())?;
            for child in names_in(&directory)? {
                match add(builder, directory.as_fd(), &child, &name.join(&child), false) {
                    // It went away meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
            Ok(())
        }
        FileType::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let target = readlinkat(parent, own, Vec::new())?;
            builder.append_link(&mut header, name, Path::new(std::ffi::OsStr::from_bytes(target.as_bytes())))
        }
        FileType::RegularFile => {
            let file = File::from(openat(parent, own, OFlags::RDONLY | OFlags::CLOEXEC | nofollow, Mode::empty())?);
            let size = u64::try_from(about.st_size).unwrap_or(0);
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            // A file that shrinks meanwhile ends in zeros: its size is written already.
            builder.append_data(&mut header, name, file.chain(io::repeat(0)).take(size))
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
            header.set_entry_type(match kind {
                FileType::CharacterDevice => EntryType::Char,
                FileType::BlockDevice => EntryType::Block,
                _ => EntryType::Fifo,
            });
            header.set_size(0);
            header.set_device_major(rustix::fs::major(about.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(about.st_rdev))?;
            builder.append_data(&mut header, name, io::empty())
        }
        // Sockets have no form in a tar.
        _ => Ok(()),
    }
}

fn header(about: &Stat) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_mode(about.st_mode & 0o7777);
    header.set_uid(u64::from(about.st_uid));
    header.set_gid(u64::from(about.st_gid));
    header.set_mtime(u64::try_from(about.st_mtime).unwrap_or(0));
    Ok(header)
}

fn names_in(directory: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        }
    }
    names.sort();
    Ok(names)
}

/// Unpacks a tar below `directory`. Names cannot leave it, and no link in it is followed.
pub fn unpack(directory: &Path, input: impl Read) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, directory, flags, Mode::empty())?;
    let mut archive = Archive::new(input);
    let mut times = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let parts = parts_of(&path)?;
        let header = entry.header().clone();
        let Some((name, above)) = parts.split_last() else {
            // The directory itself: it keeps what it is.
            continue;
        };
        let parent = open_parents(&root, above)?;
        put(&root, parent.as_fd(), name, &header, &mut entry)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if header.entry_type() == EntryType::Directory {
            times.push((parts, header));
        }
    }
    // Directories last: what is put into them changes their times.
    for (parts, header) in times.iter().rev() {
        if let Some((name, above)) = parts.split_last() {
            set_time(open_parents(&root, above)?.as_fd(), name, header)?;
        }
    }
    // To the end, so that whoever writes it can finish.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

fn parts_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(PathBuf::from(name)),
            Component::CurDir | Component::RootDir => {}
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("`{}` leaves the directory", path.display()),
                ));
            }
        }
    }
    Ok(parts)
}

/// Opens the directory that these names lead to, making what is missing.
fn open_parents(root: &OwnedFd, parts: &[PathBuf]) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    for part in parts {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        at = match openat2(&at, part, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {
                mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                openat2(&at, part, flags, Mode::empty(), resolve)?
            }
            opened => opened?,
        };
    }
    Ok(at)
}

fn put(
    root: &OwnedFd,
    parent: BorrowedFd<'_>,
    name: &Path,
    header: &Header,
    entry: &mut tar::Entry<'_, impl Read>,
) -> io::Result<()> {
    let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(about) => Some(FileType::from_raw_mode(about.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    let kind = header.entry_type();
    match (there, kind) {
        (Some(FileType::Directory), EntryType::Directory) => {}
        (Some(FileType::Directory), _) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "cannot overwrite a directory with a non-directory",
            ));
        }
        (Some(_), EntryType::Directory) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "cannot overwrite a non-directory with a directory",
            ));
        }
        // A file that something is mounted on is written in place, as one that is removed would not be the same.
        (Some(FileType::RegularFile), EntryType::Regular | EntryType::Continuous) => {
            match unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::BUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        (Some(_), _) => unlinkat(parent, name, AtFlags::empty())?,
        (None, _) => {}
    }
    let link = || {
        let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
        target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link without a target"))
    };
    let device = || -> io::Result<rustix::fs::Dev> {
        Ok(rustix::fs::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
    };
    match kind {
        EntryType::Directory => match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        },
        EntryType::Symlink => symlinkat(&link()?, parent, name)?,
        EntryType::Link => {
            let target = parts_of(&link()?)?;
            let (last, above) = target.split_last().ok_or(io::ErrorKind::InvalidData)?;
            let from = open_parents(root, above)?;
            return Ok(rustix::fs::linkat(&from, last, parent, name, AtFlags::empty())?);
        }
        EntryType::Char => mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), device()?)?,
        EntryType::Block => mknodat(parent, name, FileType::BlockDevice, Mode::empty(), device()?)?,
        EntryType::Fifo => mknodat(parent, name, FileType::Fifo, Mode::empty(), 0)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
            io::copy(entry, &mut file)?;
        }
        // Nothing that is a file.
        _ => return Ok(()),
    }
    let number = |id: u64| u32::try_from(id).map_err(io::Error::other);
    let (uid, gid) = (Uid::from_raw(number(header.uid()?)?), Gid::from_raw(number(header.gid()?)?));
    match chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // There is nobody else whose it could be.
        Err(Errno::INVAL) if crate::rootless::has_one_id() => {}
        answer => answer?,
    }
    if kind != EntryType::Symlink {
        chmodat(parent, name, Mode::from_raw_mode(header.mode()? & 0o7777), AtFlags::empty())?;
    }
    set_time(parent, name, header)
}

fn set_time(parent: BorrowedFd<'_>, name: &Path, header: &Header) -> io::Result<()> {
    let time = Timespec { tv_sec: i64::try_from(header.mtime()?).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn packed(path: &Path, name: &str, follow: bool) -> Vec<u8> {
        let mut tar = Vec::new();
        pack(path, Path::new(name), follow, &mut tar).unwrap();
        tar
    }

    #[test]
    fn trees_go_there_and_back_under_another_name() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = from.path().join("d");
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("sub/with space ü"), "content").unwrap();
        fs::set_permissions(source.join("sub/with space ü"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("sub", source.join("link")).unwrap();
        let long = "x".repeat(200);
        fs::write(source.join(&long), "long").unwrap();
        unpack(to.path(), packed(&source, "new", false).as_slice()).unwrap();
        let copied = to.path().join("new/sub/with space ü");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
        assert_eq!(fs::metadata(&copied).unwrap().permissions().mode() & 0o777, 0o751);
        assert_eq!(fs::read_link(to.path().join("new/link")).unwrap(), Path::new("sub"));
        assert_eq!(fs::read_to_string(to.path().join("new").join(&long)).unwrap(), "long");
        unpack(to.path(), packed(&source.join("."), ".", false).as_slice()).unwrap();
        assert!(to.path().join("sub/with space ü").exists());
        let followed = packed(&source.join("link"), "dir", true);
        unpack(to.path(), followed.as_slice()).unwrap();
        assert!(to.path().join("dir/with space ü").is_file());
    }

    #[test]
    fn archives_stay_in_their_directory() {
        let (out, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let entry = |builder: &mut Builder<Vec<u8>>, name: &str| {
            let mut header = Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b"evil"[..]).unwrap();
        };
        let mut climbing = Builder::new(Vec::new());
        entry(&mut climbing, "../evil");
        assert!(unpack(out.path(), climbing.into_inner().unwrap().as_slice()).is_err());
        symlink(victim.path(), out.path().join("link")).unwrap();
        let mut through = Builder::new(Vec::new());
        entry(&mut through, "link/evil");
        assert!(unpack(out.path(), through.into_inner().unwrap().as_slice()).is_err());
        let mut absolute = Builder::new(Vec::new());
        entry(&mut absolute, "/evil");
        unpack(out.path(), absolute.into_inner().unwrap().as_slice()).unwrap();
        assert!(out.path().join("evil").exists() && fs::read_dir(victim.path()).unwrap().next().is_none());
    }
}
