//! ADD: unpacking archives of a context into a tree.

use super::copy::CopyOptions;
use super::error::{Context, Result, TreeError};
use super::meta::{Kind, Time};
use super::mode::ModeChange;
use super::tar_read::{EntryKind, TarEntry, TarReader};
use super::unpack::{clean, set_attributes, write_content};
use super::view::{Node, View};
use super::writer::{DiffWriter, Ids, NewDirs, WriteDir, create, make_node, set_file, set_node_time};
use rustix::fs::AtFlags;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Largest window that a zstd or xz stream may ask us to keep.
const MAX_WINDOW_LOG: u32 = 27;
const MAX_XZ_MEMORY: u64 = 256 << 20;

/// Decompresses by content: gzip, bzip2, xz, zstd, or as it is.
pub fn decompress<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    (&mut stream).take(10).read_to_end(&mut start)?;
    let magic = start.clone();
    let all = BufReader::with_capacity(128 * 1024, Cursor::new(start).chain(stream));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(all)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(all)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(io::Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(all, stream))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(all)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(all),
    })
}

/// True if the file begins with a tar entry, compressed or not: what [`CopyOptions::unpack`] unpacks.
pub fn is_archive(file: File) -> bool {
    let Ok(stream) = decompress(file) else {
        return false;
    };
    matches!(TarReader::new(stream).next(), Ok(Some(_)))
}

impl DiffWriter {
    /// Unpacks a file into the destination if it is an archive; false if it is none.
    pub(crate) fn add_archive(&self, view: &View, node: &Node, options: &CopyOptions<'_>) -> Result<bool> {
        if !is_archive(view.open_file(node)?) {
            return Ok(false);
        }
        let new = ModeChange::new_dirs(None, options.owner, options.mtime);
        let dir = self.ensure_path(options.destination, new)?;
        let stream = decompress(view.open_file(node)?).map_err(TreeError::Archive)?;
        let merged = self.view().open_dir(&self.view().require(&dir.path, false)?)?;
        let unpack = AddArchive { writer: self, base: dir.path.clone(), view: View::of_dir(merged), options };
        unpack.run(TarReader::new(stream))?;
        Ok(true)
    }
}

/// Unpacks one archive. Links are followed inside the destination directory.
struct AddArchive<'a> {
    writer: &'a DiffWriter,
    /// The destination directory.
    base: PathBuf,
    /// What it holds, merged.
    view: View,
    options: &'a CopyOptions<'a>,
}

impl AddArchive<'_> {
    fn run<R: Read>(&self, mut reader: TarReader<R>) -> Result<()> {
        let limits = self.options.limits;
        let (mut entries, mut bytes) = (0, 0);
        while let Some(mut entry) = reader.next()? {
            entries += 1;
            if entries > limits.entries {
                return Err(TreeError::Limit { limit: limits.entries, unit: "entries" });
            }
            entry.mtime = self.options.mtime.unwrap_or(entry.mtime).max(Time::from_seconds(0));
            bytes += self.entry(&entry, &mut reader, limits.bytes.saturating_sub(bytes)).map_err(|e| match e {
                TreeError::Limit { unit, .. } => TreeError::Limit { limit: limits.bytes, unit },
                other => other,
            })?;
        }
        Ok(())
    }

    fn entry<R: Read>(&self, entry: &TarEntry, reader: &mut TarReader<R>, allowed: u64) -> Result<u64> {
        let outside = || TreeError::entry(&entry.name, "outside of the destination");
        let path = clean(&entry.name).ok_or_else(outside)?;
        if path.as_os_str().is_empty() {
            return Ok(0);
        }
        let is_dir = entry.kind == EntryKind::Node(Kind::Dir);
        // A directory takes the place of a link, as everything does.
        let mut components = self.view.resolve(&path, false)?.components;
        let Some(name) = components.pop() else {
            return Ok(0);
        };
        let dir = self.dir(&components)?;
        if is_dir {
            return self.directory(entry, &dir, &name).map(|()| 0);
        }
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(entry, &dir, &name).map(|()| 0);
        }
        self.writer.remove_for(&dir, &name)?;
        let at = dir.path.join(&name);
        let owner = Ids { uid: entry.uid, gid: entry.gid };
        match &entry.kind {
            EntryKind::Node(Kind::File) => {
                let file = create(dir.fd.as_fd(), &name).context("create", &at)?;
                let data = write_content(reader, entry, file.as_fd(), &at, allowed)?;
                set_attributes(file.as_fd(), entry, &at)?;
                rustix::fs::futimens(&file, &entry.mtime.timestamps()).context("set times of", &at)?;
                return Ok(data);
            }
            EntryKind::Node(Kind::Symlink) => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &dir.fd, &name).context("make link", &at)?;
                super::owner::set_node(dir.fd.as_fd(), &name, owner).context("set owner of", &at)?;
                set_node_time(dir.fd.as_fd(), &name, Some(entry.mtime)).context("set times of", &at)?;
            }
            EntryKind::Node(Kind::Char) if entry.rdev == 0 => {
                return Err(TreeError::entry(&entry.name, "device with number 0:0"));
            }
            EntryKind::Node(kind) => {
                make_node(dir.fd.as_fd(), &name, *kind, entry.rdev, entry.mode, owner, Some(entry.mtime))
                    .context("make", &at)?;
            }
            EntryKind::HardLink => {}
        }
        Ok(0)
    }

    /// A directory below the destination, by link-free components.
    fn dir(&self, components: &[OsString]) -> Result<WriteDir> {
        let new = NewDirs { mode: 0o755, owner: Ids::default(), mtime: self.options.mtime };
        let all: Vec<OsString> = self.base.iter().map(OsStr::to_os_string).chain(components.iter().cloned()).collect();
        self.writer.ensure(&all, new)
    }

    fn directory(&self, entry: &TarEntry, dir: &WriteDir, name: &OsStr) -> Result<()> {
        if self.writer.present(dir, name)?.meta().is_some_and(|m| !m.is_dir()) {
            self.writer.remove_name(dir, name)?;
        }
        let new = NewDirs { mode: 0o700, owner: Ids::default(), mtime: None };
        let (made, _) = self.writer.enter(dir, name, Some(new))?;
        set_attributes(made.fd.as_fd(), entry, &made.path)?;
        self.writer.set_time_later(&made.path, entry.mtime);
        Ok(())
    }

    fn hard_link(&self, entry: &TarEntry, dir: &WriteDir, name: &OsStr) -> Result<()> {
        let target = clean(&entry.link)
            .ok_or_else(|| TreeError::entry(&entry.name, "link target outside of the destination"))?;
        let resolved = self.view.resolve(&target, false)?;
        let missing = || TreeError::entry(&entry.name, "hard link to a file that does not exist");
        let node = resolved.node.ok_or_else(missing)?;
        let mut components = resolved.components;
        let Some(target_name) = components.pop().filter(|_| !node.meta.is_dir()) else {
            return Err(TreeError::entry(&entry.name, "hard link to a directory"));
        };
        let target_dir = self.dir(&components)?;
        if (&target_dir.path, target_name.as_os_str()) == (&dir.path, name) {
            return Ok(());
        }
        if matches!(self.writer.present(&target_dir, &target_name)?, super::writer::Present::Lower(_)) {
            self.copy_up(&node, &target_dir, &target_name)?;
        }
        self.writer.remove_for(dir, name)?;
        let path = dir.path.join(name);
        rustix::fs::linkat(&target_dir.fd, &target_name, &dir.fd, name, AtFlags::empty()).context("link", &path)?;
        if !node.meta.is_file() {
            return Ok(());
        }
        // What the link's own header says holds for the file, as in BuildKit.
        let (file, _) = super::dir::open_regular(dir.fd.as_fd(), name, &path)?;
        set_attributes(file.as_fd(), entry, &path)?;
        rustix::fs::futimens(&file, &entry.mtime.timestamps()).context("set times of", &path)
    }

    /// Copies a file of the base into the diff, so that it can get another name.
    fn copy_up(&self, node: &Node, dir: &WriteDir, name: &OsStr) -> Result<()> {
        if !node.meta.is_file() {
            return Err(TreeError::unfit(&node.path, "hard link to a special file of the base"));
        }
        let path = dir.path.join(name);
        let source = self.view.open_file(node)?;
        let file = create(dir.fd.as_fd(), name).context("create", &path)?;
        let mover = super::content::Mover::default();
        mover.copy(source.as_fd(), file.as_fd(), node.meta.size, node.meta.blocks).context("copy to", &path)?;
        let owner = Ids { uid: node.meta.uid, gid: node.meta.gid };
        set_file(file.as_fd(), node.meta.mode, owner, Some(node.meta.mtime))
            .context("set attributes of", Path::new(&path))
    }
}
