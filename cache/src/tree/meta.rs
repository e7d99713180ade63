//! What is known of a file without opening it.

use rustix::fs::{FileType, Stat};

/// Kind of a file, with what only that kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

impl Kind {
    pub(crate) fn of(kind: FileType) -> Kind {
        match kind {
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::RegularFile | FileType::Unknown => Kind::File,
        }
    }

    pub(crate) fn file_type(self) -> FileType {
        match self {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
        }
    }

    /// A stable number for digests.
    pub(crate) fn tag(self) -> u8 {
        match self {
            Kind::File => 1,
            Kind::Dir => 2,
            Kind::Symlink => 3,
            Kind::Fifo => 4,
            Kind::Socket => 5,
            Kind::Char => 6,
            Kind::Block => 7,
        }
    }
}

impl Kind {
    pub(crate) fn of_tag(tag: u8) -> Option<Kind> {
        let kinds = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block];
        kinds.into_iter().find(|kind| kind.tag() == tag)
    }
}

/// A point in time: seconds since 1970, possibly negative, and nanoseconds after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0..1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// The time at whole seconds.
    pub const fn from_seconds(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    pub(crate) fn timestamps(self) -> rustix::fs::Timestamps {
        let at = rustix::fs::Timespec { tv_sec: self.seconds, tv_nsec: self.nanos.into() };
        rustix::fs::Timestamps { last_access: at, last_modification: at }
    }
}

/// Attributes of a file as a view shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky, `0..=0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file or of a link's target.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Device number of a device node, 0 otherwise.
    pub rdev: u64,
    /// Device that holds the file.
    pub dev: u64,
    /// Inode number; with `dev` the identity of hard links.
    pub ino: u64,
    /// Number of names, counting those outside the view.
    pub nlink: u64,
    /// Blocks of 512 bytes in use; fewer than the size needs means holes.
    pub(crate) blocks: u64,
}

impl Meta {
    pub(crate) fn of(stat: &Stat) -> Meta {
        let kind = Kind::of(FileType::from_raw_mode(stat.st_mode));
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
            ctime: Time { seconds: stat.st_ctime, nanos: u32::try_from(stat.st_ctime_nsec).unwrap_or(0) },
            rdev: if matches!(kind, Kind::Char | Kind::Block) { stat.st_rdev } else { 0 },
            dev: stat.st_dev,
            ino: stat.st_ino,
            nlink: stat.st_nlink,
            blocks: u64::try_from(stat.st_blocks).unwrap_or(u64::MAX),
        }
    }

    /// Attributes of an empty file that is only a sign.
    pub(crate) fn marker() -> Meta {
        Meta {
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            ctime: Time::default(),
            rdev: 0,
            dev: 0,
            ino: 0,
            nlink: 1,
            blocks: 0,
        }
    }

    /// True for directories.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// True for regular files.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char && self.rdev == 0
    }
}
