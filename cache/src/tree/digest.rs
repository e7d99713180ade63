//! Merkle digests of what views show.
//!
//! A digest covers type, mode, owner, content, link target, device number and `security.capability`; never times, inodes or
//! the order of directories. Encoding, version 1:
//!
//! ```text
//! record     kind u8 (1 file, 2 dir, 3 symlink, 4 fifo, 5 socket, 6 char, 7 block), mode u32, uid u32, gid u32, value 32 bytes
//! value      file: blake3(content), or with a capability blake3("xbuild capability 1" blake3(content) capability)
//!            symlink: blake3(target)    device: number u64 and zeros    fifo, socket: zeros
//!            dir: blake3("xbuild dir 1" { name length u32, name, record }*), names sorted by bytes
//! digest     blake3("xbuild node 1" record)
//! ```
//!
//! Numbers are little endian.

use super::content::hash_to;
use super::copy::{CopyOptions, CopySource, Excludes};
use super::dir::{Dir, Entry, MAX_DEPTH, open_regular, xattr};
use super::error::{Context, Result, TreeError};
use super::index::{FileDigests, StatKey};
use super::link::lock;
use super::listing::{Block, BlockWriter, Listing, ListingWriter};
use super::meta::{Kind, Meta};
use super::select::{Include, Said, expand};
use super::view::{Node, View, Visibility};
use super::writer::{base_name, named};
use rayon::Scope;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A digest of files, blake3.
pub type TreeDigest = [u8; 32];

impl View {
    /// Digest of a path with everything below it, its own attributes included. A last link is followed if `follow`.
    pub fn digest(&self, path: impl AsRef<Path>, follow: bool, files: &dyn FileDigests) -> Result<TreeDigest> {
        let node = self.require(path, follow)?;
        let record = Hashing::new(self, files, None, None).node(&node)?;
        let record = record.unwrap_or(Record::new(node.meta, [0; 32]));
        Ok(finish(&record))
    }
}

/// Digest of everything that the result of a copy takes from its sources: what the sources select, by which names.
///
/// Destination, owner and mode of `options` are not covered. The attributes of directories whose content is copied count only
/// where they are kept. A missing required source is an error, as in the copy.
pub fn selection_digest(
    sources: &[CopySource<'_>],
    options: &CopyOptions<'_>,
    files: &dyn FileDigests,
) -> Result<TreeDigest> {
    let selection = Selection { options, files, list: None };
    let mut hasher = selection.start();
    for source in sources {
        selection.add(source, &mut hasher, &mut |_, _| {})?;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// How sources are hashed.
#[derive(Clone, Copy)]
struct Selection<'a> {
    options: &'a CopyOptions<'a>,
    files: &'a dyn FileDigests,
    list: Option<&'a ListingWriter>,
}

impl<'a> Selection<'a> {
    fn start(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"xbuild selection 1");
        hasher
    }

    fn walk(&self, view: &'a View, include: Option<Include<'a>>) -> Hashing<'a> {
        let mut hashing = Hashing::new(view, self.files, self.options.excludes, include);
        hashing.list = self.list.map(|list| (list, self.options));
        hashing
    }

    /// Adds a source to the digest, and tells `found` what it is.
    fn add(
        &self,
        source: &CopySource<'a>,
        hasher: &mut blake3::Hasher,
        found: &mut dyn FnMut(&Node, Option<Record>),
    ) -> Result<()> {
        match *source {
            CopySource::Inline { name, data } => {
                field(hasher, b"inline");
                field(hasher, name.as_bytes());
                field(hasher, data);
            }
            CopySource::Path { view, path, wildcard, required } if self.options.parents => {
                let text = path.to_str().ok_or_else(|| TreeError::unfit(path, "not valid UTF-8"))?;
                let (pivot, pattern) = text.split_once("/./").unwrap_or(("/", text));
                let node = view.require(pivot, true)?;
                let hashing = self.walk(view, Some(Include::new(pattern, self.options.glob, self.options.wildcard)));
                let record = hashing.node(&node)?;
                if required && !wildcard && !hashing.found.load(Ordering::Relaxed) {
                    return Err(TreeError::not_found(path));
                }
                found(&node, record);
                add(hasher, None, &node, record);
            }
            CopySource::Path { view, path, wildcard, required } => {
                let paths =
                    if wildcard { expand(view, path, self.options.wildcard, true)? } else { vec![path.to_path_buf()] };
                for path in paths {
                    let Some(node) = view.lookup(&path, true)? else {
                        if required || wildcard {
                            return Err(TreeError::not_found(path));
                        }
                        field(hasher, b"absent");
                        continue;
                    };
                    let record = self.walk(view, None).node(&node)?;
                    found(&node, record);
                    add(hasher, base_name(&path), &node, record);
                }
            }
        }
        Ok(())
    }
}

/// As [`selection_digest`] of one source, with a listing of what it selects if it is a directory.
///
/// The listing is written to `list`; `origin` names where the files are.
pub fn selection_listing(
    source: CopySource<'_>,
    options: &CopyOptions<'_>,
    files: &dyn FileDigests,
    list: ListingWriter,
    origin: TreeDigest,
) -> Result<(TreeDigest, Option<Listing>)> {
    let selection = Selection { options, files, list: Some(&list) };
    let mut hasher = selection.start();
    let mut root = None;
    selection.add(&source, &mut hasher, &mut |node, record| {
        let whole = record.filter(|_| node.meta.is_dir());
        root = Some(whole.map(|record| (record.block, record.listed)).filter(|_| root.is_none()));
    })?;
    let listing = root.flatten().map(|(block, value)| list.finish(block, value, origin));
    Ok((*hasher.finalize().as_bytes(), listing))
}

/// Adds one source. Of a directory only the content counts, not its name and attributes.
fn add(hasher: &mut blake3::Hasher, name: Option<&OsStr>, node: &Node, record: Option<Record>) {
    let value = record.map_or([0; 32], |r| r.value);
    if node.meta.is_dir() {
        field(hasher, b"dir");
        field(hasher, &value);
    } else {
        field(hasher, b"file");
        field(hasher, name.map_or(&b""[..], |n| n.as_bytes()));
        field(hasher, &Record::new(node.meta, value).encode());
    }
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn finish(record: &Record) -> TreeDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"xbuild node 1");
    hasher.update(&record.encode());
    *hasher.finalize().as_bytes()
}

/// What a directory's digest says of one entry.
#[derive(Clone, Copy, Debug)]
struct Record {
    meta: Meta,
    value: [u8; 32],
    /// Of a directory that is listed: its block, the block's digest, and whether it is there only for what is below.
    block: Block,
    listed: [u8; 32],
    incidental: bool,
}

impl Record {
    fn new(meta: Meta, value: [u8; 32]) -> Record {
        Record { meta, value, block: Block::default(), listed: [0; 32], incidental: false }
    }

    fn encode(&self) -> [u8; 45] {
        let mut bytes = [0; 45];
        bytes[0] = self.meta.kind.tag();
        bytes[1..5].copy_from_slice(&self.meta.mode.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.meta.uid.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.meta.gid.to_le_bytes());
        bytes[13..].copy_from_slice(&self.value);
        bytes
    }
}

/// One walk.
struct Hashing<'a> {
    view: &'a View,
    files: &'a dyn FileDigests,
    excludes: Option<Excludes<'a>>,
    include: Option<Include<'a>>,
    /// Where directories are listed, and the copy that they are listed for.
    list: Option<(&'a ListingWriter, &'a CopyOptions<'a>)>,
    found: AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<TreeError>>,
    result: Mutex<Option<Record>>,
}

/// A directory whose entries are being hashed; the last of its tasks computes its digest.
struct Job {
    parent: Option<(Arc<Job>, usize)>,
    meta: Meta,
    /// It does not exist unless something below it does.
    incidental: bool,
    path: PathBuf,
    below: PathBuf,
    included: bool,
    depth: usize,
    names: Vec<Entry>,
    records: Mutex<Vec<Option<Record>>>,
}

const CHUNK: usize = 256;

impl<'a> Hashing<'a> {
    fn new(
        view: &'a View,
        files: &'a dyn FileDigests,
        excludes: Option<Excludes<'a>>,
        include: Option<Include<'a>>,
    ) -> Hashing<'a> {
        Hashing {
            view,
            files,
            excludes,
            include,
            list: None,
            found: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            result: Mutex::new(None),
        }
    }

    /// The record of a node; none for a directory that is not there for want of content.
    fn node(&self, node: &Node) -> Result<Option<Record>> {
        if !node.meta.is_dir() {
            let Some((parent, part, name)) = named(node) else {
                return Ok(None);
            };
            return self.leaf(parent, part, name, &node.meta, &node.path).map(Some);
        }
        let dir = self.view.open_dir(node)?;
        let included = self.include.as_ref().is_none_or(|i| i.says(Path::new("")) == Said::Yes);
        if included {
            self.found.store(true, Ordering::Relaxed);
        }
        let names = self.names(&dir, &node.path)?;
        let job = Job {
            parent: None,
            meta: node.meta,
            incidental: false,
            path: node.path.clone(),
            below: PathBuf::new(),
            included,
            depth: 0,
            records: Mutex::new(vec![None; names.len()]),
            names,
        };
        rayon::scope(|scope| self.directory(scope, &dir, Arc::new(job)));
        if let Some(failure) = lock(&self.failure).take() {
            return Err(failure);
        }
        Ok(lock(&self.result).take())
    }

    fn directory<'s>(&'s self, scope: &Scope<'s>, dir: &Dir, job: Arc<Job>) {
        let mut start = CHUNK.min(job.names.len());
        while start < job.names.len() {
            let end = (start + CHUNK).min(job.names.len());
            let (dir, job) = (dir.clone(), Arc::clone(&job));
            scope.spawn(move |scope| {
                self.chunk(scope, &dir, &job, start, end);
                self.done(job);
            });
            start = end;
        }
        self.chunk(scope, dir, &job, 0, CHUNK.min(job.names.len()));
        self.done(job);
    }

    fn chunk<'s>(&'s self, scope: &Scope<'s>, dir: &Dir, job: &Arc<Job>, start: usize, end: usize) {
        let mut records = vec![None; end - start];
        for at in start..end {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            match self.entry(scope, dir, job, at) {
                Ok(record) => records[at - start] = record,
                Err(failure) => return self.fail(failure),
            }
        }
        let mut all = lock(&job.records);
        for (slot, record) in all[start..end].iter_mut().zip(records) {
            // A directory may be done already.
            *slot = slot.or(record);
        }
    }

    fn fail(&self, failure: TreeError) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(failure);
    }

    /// The record of an entry; none for what is left out and for directories, whose tasks bring theirs later.
    fn entry<'s>(&'s self, scope: &Scope<'s>, dir: &Dir, job: &Arc<Job>, at: usize) -> Result<Option<Record>> {
        let entry = &job.names[at];
        let path = job.path.join(&entry.name);
        let plain = self.include.is_none() && self.excludes.is_none();
        let below = if plain { PathBuf::new() } else { job.below.join(&entry.name) };
        let said = match &self.include {
            Some(include) if !job.included => include.says(&below),
            _ => Said::Yes,
        };
        if said == Said::No {
            return Ok(None);
        }
        let Some(meta) = dir.stat_entry(entry).context("stat", &path)? else {
            return Ok(None);
        };
        let meta = self.view.shown(meta);
        let visible = self.view.visibility(&path, meta.is_dir());
        let wanted = self.excludes.map_or(Visibility::Visible, |e| e(&below, meta.is_dir()));
        if visible == Visibility::Hidden || wanted == Visibility::Hidden {
            return Ok(None);
        }
        let all = wanted == Visibility::Visible && said == Said::Yes;
        if meta.is_dir() {
            if job.depth >= MAX_DEPTH {
                return Err(TreeError::unfit(&path, "nested too deeply"));
            }
            let incidental = !all || visible != Visibility::Visible;
            if !incidental {
                self.found.store(true, Ordering::Relaxed);
            }
            let (dir, parent) = (dir.clone(), Arc::clone(job));
            scope.spawn(move |scope| {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(failure) = self.enter(scope, &dir, parent, at, Below { meta, incidental, path, below, said })
                {
                    self.fail(failure);
                }
            });
            return Ok(None);
        }
        if !all || (meta.kind == Kind::Socket && !self.view.immutable()) {
            return Ok(None);
        }
        self.found.store(true, Ordering::Relaxed);
        self.leaf(dir, entry.part, &entry.name, &meta, &path).map(Some)
    }

    fn enter<'s>(&'s self, scope: &Scope<'s>, dir: &Dir, parent: Arc<Job>, at: usize, below: Below) -> Result<()> {
        let entry = &parent.names[at];
        let Some(child) = dir.child_from(&entry.name, entry.part).context("open", &below.path)? else {
            self.done(parent);
            return Ok(());
        };
        let names = self.names(&child, &below.path)?;
        let job = Job {
            meta: below.meta,
            incidental: below.incidental,
            path: below.path,
            below: below.below,
            included: below.said == Said::Yes,
            depth: parent.depth + 1,
            parent: Some((parent, at)),
            records: Mutex::new(vec![None; names.len()]),
            names,
        };
        self.directory(scope, &child, Arc::new(job));
        Ok(())
    }

    /// Gives up a task's hold of a directory; whoever is last computes its digest, and so on upwards.
    fn done(&self, job: Arc<Job>) {
        let mut next = Some(job);
        while let Some(job) = next.and_then(Arc::into_inner) {
            let records = job.records.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (block, listed) = match self.listed(&job.names, &records) {
                Ok(listed) => listed,
                Err(failure) => return self.fail(failure),
            };
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"xbuild dir 1");
            let mut room = Vec::with_capacity(64 * 1024);
            let mut any = false;
            for (entry, record) in job.names.iter().zip(records) {
                let Some(record) = record else { continue };
                any = true;
                let name = entry.name.as_bytes();
                room.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
                room.extend_from_slice(name);
                room.extend_from_slice(&record.encode());
                if room.len() > 60 * 1024 {
                    hasher.update(&room);
                    room.clear();
                }
            }
            hasher.update(&room);
            let value = *hasher.finalize().as_bytes();
            let Job { meta, incidental, .. } = job;
            let record = (any || !incidental).then_some(Record { meta, value, block, listed, incidental });
            next = match job.parent {
                Some((parent, at)) => {
                    lock(&parent.records)[at] = record;
                    Some(parent)
                }
                None => {
                    *lock(&self.result) = record;
                    None
                }
            };
        }
    }

    fn names(&self, dir: &Dir, path: &Path) -> Result<Vec<Entry>> {
        let names = dir.entries().context("list", path)?;
        if let Some((list, _)) = self.list {
            // After the names were read: what changes from here on has a later time.
            list.note_change(dir.meta().context("stat", path)?.ctime);
        }
        Ok(names)
    }

    /// Writes a directory into the listing, if there is one.
    fn listed(&self, names: &[Entry], records: &[Option<Record>]) -> Result<(Block, [u8; 32])> {
        let Some((list, options)) = self.list else {
            return Ok(Default::default());
        };
        if let Some(newest) = records.iter().flatten().map(|record| record.meta.ctime).max() {
            list.note_change(newest);
        }
        let mut writer = BlockWriter::default();
        for (entry, record) in names.iter().zip(records) {
            let Some(record) = record else { continue };
            let dir = record.meta.is_dir();
            let value = if dir { &record.listed } else { &record.value };
            let below = dir.then_some((record.block, record.incidental));
            writer.add(entry.name.as_bytes(), &record.meta, options.time_of(&record.meta), value, below);
        }
        list.append(writer)
    }

    fn leaf(&self, dir: &Dir, part: usize, name: &OsStr, meta: &Meta, path: &Path) -> Result<Record> {
        let mut value = [0; 32];
        match meta.kind {
            Kind::File => {
                value = self.file(dir, part, name, meta, path)?;
                if let Some((list, _)) = self.list.filter(|_| meta.nlink > 1) {
                    list.note_linked(meta, path);
                }
            }
            Kind::Symlink => {
                let target = dir.readlink(part, name).context("read link", path)?;
                value = *blake3::hash(target.as_bytes()).as_bytes();
            }
            _ => value[..8].copy_from_slice(&meta.rdev.to_le_bytes()),
        }
        Ok(Record::new(*meta, value))
    }

    fn file(&self, dir: &Dir, part: usize, name: &OsStr, meta: &Meta, path: &Path) -> Result<[u8; 32]> {
        let immutable = self.view.immutable();
        let key = StatKey::of(meta, immutable);
        if let Some(known) = self.files.get(&key) {
            return Ok(known);
        }
        let (file, before) = open_regular(dir.fd(part), name, path)?;
        let mut value = hash_to(file.as_fd(), meta.size, |_| Ok(())).context("read", path)?;
        if immutable
            && let Some(capability) = xattr(file.as_fd(), "security.capability").context("read attributes of", path)?
        {
            let mut with = blake3::Hasher::new();
            with.update(b"xbuild capability 1");
            with.update(&value);
            with.update(&capability);
            value = *with.finalize().as_bytes();
        }
        let after = Meta::of(&rustix::fs::fstat(&file).context("stat", path)?);
        if StatKey::of(&before, immutable) == key && StatKey::of(&after, immutable) == key {
            self.files.put(&key, value);
        }
        Ok(value)
    }
}

/// A sub-directory on its way to a task.
struct Below {
    meta: Meta,
    incidental: bool,
    path: PathBuf,
    below: PathBuf,
    said: Said,
}
