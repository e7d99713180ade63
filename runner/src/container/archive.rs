//! Files to a tar and back, for copies between containers and the host.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fstat, fstatfs, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};

/// File systems of the kernel: proc, sysfs, both of cgroups, mqueue and devpts.
const KERNEL_MAGIC: [u64; 6] = [0x9fa0, 0x6265_6572, 0x27_e0eb, 0x6367_7270, 0x1980_0202, 0x1cd1];
const TMPFS_MAGIC: u64 = 0x0102_1994;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Whose paths are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those of whoever asks, on the host.
    Host,
    /// Those of a container that this process has the root of: the kernel's own links, as `/proc/1/root`, are not followed,
    /// as they can lead out of it.
    Container,
}

impl Side {
    pub(super) fn open(self, at: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = match self {
            Side::Host => ResolveFlags::empty(),
            Side::Container => ResolveFlags::NO_MAGICLINKS,
        };
        openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

/// Writes the file or directory at `path` as a tar in which it is called `name`; `.` stands for a directory's content.
///
/// Of what the kernel shows somewhere below, as `/proc`, only the directory is written.
pub fn pack(side: Side, path: &Path, name: &Path, follow: bool, out: impl Write) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let (directory, own, follow) = match path.file_name().filter(|_| !ends_in_dot(path)) {
        Some(own) => (parent, Path::new(own), follow),
        None => (path, Path::new("."), true),
    };
    let directory = side.open(CWD, directory, DIRECTORY).map_err(|error| named(directory, &error.into()))?;
    let devices = statat(CWD, "/dev", AtFlags::SYMLINK_NOFOLLOW).ok().map(|about| (about.st_dev, about.st_ino));
    let mut packer = Packer { side, builder: Builder::new(out), devices };
    let shown: PathBuf = path.components().collect();
    packer.add(&Item { parent: directory.as_fd(), own, name, path: &shown }, follow, None)?;
    packer.builder.into_inner()?.flush()
}

/// An error with the path that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether a path asks for the content of a directory: `x/.`.
#[must_use]
pub fn ends_in_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/.") || bytes == b"."
}

/// A tar that is being written.
struct Packer<W: Write> {
    side: Side,
    builder: Builder<W>,
    /// Device and inode of `/dev`.
    devices: Option<(u64, u64)>,
}

/// Something that goes into a tar.
struct Item<'a> {
    parent: BorrowedFd<'a>,
    /// Its name in the parent.
    own: &'a Path,
    /// Its name in the tar.
    name: &'a Path,
    /// Where it was found, for errors.
    path: &'a Path,
}

/// A directory whose content goes into the tar, too.
struct Opened {
    directory: OwnedFd,
    device: u64,
    names: Vec<PathBuf>,
}

impl<W: Write> Packer<W> {
    /// Writes something, with all that is below. `above` is the device of the directory that it was found in.
    fn add(&mut self, item: &Item<'_>, follow: bool, above: Option<u64>) -> io::Result<()> {
        let opened = self.write(item, follow, above).map_err(|error| named(item.path, &error))?;
        let Some(Opened { directory, device, names }) = opened else { return Ok(()) };
        for own in &names {
            let (name, path) = (item.name.join(own), item.path.join(own));
            let below = Item { parent: directory.as_fd(), own, name: &name, path: &path };
            match self.add(&below, false, Some(device)) {
                // It went away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Writes something itself.
    fn write(&mut self, item: &Item<'_>, follow: bool, above: Option<u64>) -> io::Result<Option<Opened>> {
        let Item { parent, own, name, .. } = *item;
        let about = match follow {
            true => fstat(self.side.open(parent, own, OFlags::PATH)?)?,
            false => statat(parent, own, AtFlags::SYMLINK_NOFOLLOW)?,
        };
        let mut header = header(&about)?;
        let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                self.builder.append_data(&mut header, name, io::empty())?;
                let directory = self.side.open(parent, own, DIRECTORY | nofollow)?;
                let mounted = above.is_some_and(|above| above != about.st_dev);
                if mounted && self.is_kernels(&directory, &about)? {
                    return Ok(None);
                }
                let names = names_in(&directory)?;
                return Ok(Some(Opened { directory, device: about.st_dev, names }));
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                let target = readlinkat(parent, own, Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
                self.builder.append_link(&mut header, name, target)?;
            }
            FileType::RegularFile => {
                let file = File::from(self.side.open(parent, own, OFlags::RDONLY | nofollow)?);
                let size = u64::try_from(about.st_size).unwrap_or(0);
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                // A file that shrinks meanwhile ends in zeros: its size is written already.
                self.builder.append_data(&mut header, name, file.chain(io::repeat(0)).take(size))?;
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
                self.builder.append_data(&mut header, name, io::empty())?;
            }
            // Sockets have no form in a tar.
            _ => {}
        }
        Ok(None)
    }

    /// Whether what is mounted here shows the kernel's own things, or is `/dev`.
    fn is_kernels(&self, directory: &OwnedFd, about: &Stat) -> io::Result<bool> {
        let magic = fstatfs(directory)?.f_type as u64;
        Ok(KERNEL_MAGIC.contains(&magic) || magic == TMPFS_MAGIC && self.devices == Some((about.st_dev, about.st_ino)))
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
pub fn unpack(side: Side, directory: &Path, input: impl Read) -> io::Result<()> {
    let root = side.open(CWD, directory, DIRECTORY)?;
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
        open_parents(&root, above)
            .and_then(|parent| put(&root, parent.as_fd(), name, &header, &mut entry))
            .map_err(|error| named(&path, &error))?;
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
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        at = match openat2(&at, part, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {
                mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                openat2(&at, part, DIRECTORY, Mode::empty(), resolve)?
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
        pack(Side::Container, path, Path::new(name), follow, &mut tar).unwrap();
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
        unpack(Side::Container, to.path(), packed(&source, "new", false).as_slice()).unwrap();
        let copied = to.path().join("new/sub/with space ü");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
        assert_eq!(fs::metadata(&copied).unwrap().permissions().mode() & 0o777, 0o751);
        assert_eq!(fs::read_link(to.path().join("new/link")).unwrap(), Path::new("sub"));
        assert_eq!(fs::read_to_string(to.path().join("new").join(&long)).unwrap(), "long");
        unpack(Side::Container, to.path(), packed(&source.join("."), ".", false).as_slice()).unwrap();
        assert!(to.path().join("sub/with space ü").exists());
        let followed = packed(&source.join("link"), "dir", true);
        unpack(Side::Container, to.path(), followed.as_slice()).unwrap();
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
        assert!(unpack(Side::Container, out.path(), climbing.into_inner().unwrap().as_slice()).is_err());
        symlink(victim.path(), out.path().join("link")).unwrap();
        let mut through = Builder::new(Vec::new());
        entry(&mut through, "link/evil");
        assert!(unpack(Side::Container, out.path(), through.into_inner().unwrap().as_slice()).is_err());
        let mut absolute = Builder::new(Vec::new());
        entry(&mut absolute, "/evil");
        unpack(Side::Container, out.path(), absolute.into_inner().unwrap().as_slice()).unwrap();
        assert!(out.path().join("evil").exists() && fs::read_dir(victim.path()).unwrap().next().is_none());
    }

    #[test]
    fn errors_name_the_path_that_failed() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("f"), "content").unwrap();
        let error = pack(Side::Host, &from.path().join("f/below"), Path::new("x"), false, io::sink()).unwrap_err();
        assert!(error.to_string().contains("/f: "), "{error}");
        let error = pack(Side::Host, &from.path().join("none"), Path::new("x"), false, io::sink()).unwrap_err();
        assert!(error.kind() == io::ErrorKind::NotFound && error.to_string().contains("/none: "), "{error}");
    }

    #[test]
    fn links_of_the_kernel_lead_nowhere_in_a_container() {
        let own = Path::new("/proc/self/root/etc/passwd");
        assert!(pack(Side::Host, own, Path::new("x"), false, io::sink()).is_ok());
        assert!(pack(Side::Container, own, Path::new("x"), false, io::sink()).is_err());
        assert!(pack(Side::Container, Path::new("/proc/self/cwd"), Path::new("x"), true, io::sink()).is_err());
        assert!(unpack(Side::Container, Path::new("/proc/self/cwd"), io::empty()).is_err());
    }

    #[test]
    fn nothing_is_read_of_what_the_kernel_shows() {
        let directory = openat(CWD, "/", DIRECTORY, Mode::empty()).unwrap();
        let mut packer = Packer { side: Side::Host, builder: Builder::new(Vec::new()), devices: None };
        let item = Item {
            parent: directory.as_fd(),
            own: Path::new("proc"),
            name: Path::new("proc"),
            path: Path::new("/proc"),
        };
        let above = fstat(&directory).unwrap().st_dev;
        packer.add(&item, false, Some(above)).unwrap();
        let tar = packer.builder.into_inner().unwrap();
        let mut archive = Archive::new(tar.as_slice());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert_eq!(names.collect::<Vec<_>>(), [PathBuf::from("proc")]);
    }
}
