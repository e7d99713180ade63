//! What a copy of a directory selects, written down while it is hashed.
//!
//! A listing is kept beside the diff directory that the copy made. The next copy by the same instruction compares its own
//! listing with it and looks only at what changed. Unlike a digest it tells times and hard links, too, since a layer has them.
//!
//! ```text
//! block    entry*  place*                  one for each directory, what is below it first
//! entry    name length u16, name, kind u8, incidental u8, mode u32, uid u32, gid u32, mtime seconds i64, ns u32, value 32 bytes
//! value    of a directory: blake3 of the entries of its block; else as for digests
//! place    at u64, length of entries u64, number of places u64, entries below u64; one a directory
//! footer   root's place, root's value 32 bytes, links 32 bytes, origin 32 bytes, "xblist\0\x01"
//! links    blake3 of all names of files that have several of them here: file by file, names as 16 bytes of blake3
//! ```
//!
//! Numbers are little endian. A listing is small beside what it lists: some 80 bytes for each file.

use super::digest::TreeDigest;
use super::error::{Context, Result};
use super::link::lock;
use super::meta::{Kind, Meta, Time};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const MAGIC: [u8; 8] = *b"xblist\0\x01";
const PLACE: usize = 32;
const FOOTER: usize = PLACE + 3 * 32 + MAGIC.len();
/// What is kept in memory; the rest of a longer listing goes to a file.
const IN_MEMORY: usize = 4 << 20;
/// Longest block that is read; a directory with as many names is copied anew.
const MAX_BLOCK: u64 = 512 << 20;

/// Where the block of a directory is, and how much is below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    at: u64,
    entries_len: u64,
    places: u64,
    /// Everything below the directory.
    pub(crate) below: u64,
}

impl Block {
    fn encode(&self) -> [u8; PLACE] {
        let mut bytes = [0; PLACE];
        let numbers = [self.at, self.entries_len, self.places, self.below];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Block {
        let mut numbers = bytes.chunks_exact(8).map(|n| n.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)));
        let mut next = || numbers.next().unwrap_or(0);
        Block { at: next(), entries_len: next(), places: next(), below: next() }
    }
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: Kind,
    /// A directory that is there only for what is below it.
    pub(crate) incidental: bool,
    /// All there is to compare, for directories also what is below.
    pub(crate) facts: &'a [u8],
}

impl Listed<'_> {
    /// Of a directory: what names its block.
    pub(crate) fn value(&self) -> &[u8] {
        &self.facts[FACTS - 32..FACTS]
    }
}

/// Builds the block of one directory.
#[derive(Debug, Default)]
pub(crate) struct BlockWriter {
    entries: Vec<u8>,
    places: Vec<u8>,
    block: Block,
}

impl BlockWriter {
    /// Adds a name; in the order of names. `directory` is the block of a directory.
    pub(crate) fn add(
        &mut self,
        name: &[u8],
        meta: &Meta,
        mtime: Time,
        value: &[u8; 32],
        directory: Option<(Block, bool)>,
    ) {
        self.entries.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.entries.extend_from_slice(name);
        self.entries.push(meta.kind.tag());
        self.entries.push(directory.is_some_and(|(_, incidental)| incidental).into());
        for number in [meta.mode, meta.uid, meta.gid] {
            self.entries.extend_from_slice(&number.to_le_bytes());
        }
        self.entries.extend_from_slice(&mtime.seconds.to_le_bytes());
        self.entries.extend_from_slice(&mtime.nanos.to_le_bytes());
        self.entries.extend_from_slice(value);
        self.block.below += 1;
        let Some((below, _)) = directory else { return };
        self.places.extend_from_slice(&below.encode());
        self.block.places += 1;
        self.block.below += below.below;
    }
}

/// Takes the blocks of a walk, from many threads.
#[derive(Debug)]
pub struct ListingWriter {
    spill_dir: PathBuf,
    state: Mutex<Content>,
    /// Files with several names, here or elsewhere.
    linked: Mutex<Vec<LinkedName>>,
    /// When the last change of anything that is listed was.
    newest: Mutex<Option<Time>>,
}

/// A file by device and inode, and one of its names.
type LinkedName = (u64, u64, [u8; 16]);

/// Bytes of a listing.
#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    File(File, u64),
}

impl ListingWriter {
    /// Starts one; what is too long for memory goes into a file without a name in `spill_dir`.
    pub fn new(spill_dir: &Path) -> ListingWriter {
        ListingWriter {
            spill_dir: spill_dir.to_path_buf(),
            state: Mutex::new(Content::Memory(Vec::new())),
            linked: Mutex::default(),
            newest: Mutex::default(),
        }
    }

    /// Notes when something was changed.
    pub(crate) fn note_change(&self, changed: Time) {
        let mut newest = lock(&self.newest);
        *newest = (*newest).max(Some(changed));
    }

    /// Notes a name of a file that has several.
    pub(crate) fn note_linked(&self, meta: &Meta, path: &Path) {
        let mut name = [0; 16];
        name.copy_from_slice(&blake3::hash(path.as_os_str().as_bytes()).as_bytes()[..16]);
        lock(&self.linked).push((meta.dev, meta.ino, name));
    }

    /// Appends a directory and returns its place and value.
    pub(crate) fn append(&self, writer: BlockWriter) -> Result<(Block, [u8; 32])> {
        let BlockWriter { entries, places, mut block } = writer;
        let value = *blake3::hash(&entries).as_bytes();
        block.entries_len = entries.len() as u64;
        let mut state = lock(&self.state);
        if let Content::Memory(bytes) = &*state
            && bytes.len() + entries.len() + places.len() > IN_MEMORY
        {
            let mut file = self.spill()?;
            file.write_all(bytes).context("write", &self.spill_dir)?;
            *state = Content::File(file, bytes.len() as u64);
        }
        match &mut *state {
            Content::Memory(bytes) => {
                block.at = bytes.len() as u64;
                bytes.extend_from_slice(&entries);
                bytes.extend_from_slice(&places);
            }
            Content::File(file, len) => {
                block.at = *len;
                file.write_all(&entries).and_then(|()| file.write_all(&places)).context("write", &self.spill_dir)?;
                *len += (entries.len() + places.len()) as u64;
            }
        }
        Ok((block, value))
    }

    fn spill(&self) -> Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(&self.spill_dir, flags, Mode::from(0o600)).context("create a file in", &self.spill_dir)?;
        Ok(file.into())
    }

    /// Ends the walk at its root. `origin` names where the files are.
    pub(crate) fn finish(self, root: Block, value: [u8; 32], origin: TreeDigest) -> Listing {
        let content = self.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let links = links_of(self.linked.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        let newest = *lock(&self.newest);
        Listing { content, root, value, links, origin, newest }
    }
}

/// Digest of which names are of one file.
fn links_of(mut names: Vec<LinkedName>) -> [u8; 32] {
    names.sort_unstable();
    let mut groups: Vec<&[LinkedName]> =
        names.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)).filter(|group| group.len() > 1).collect();
    groups.sort_unstable_by_key(|group| group[0].2);
    let mut hasher = blake3::Hasher::new();
    for group in groups {
        hasher.update(&(group.len() as u64).to_le_bytes());
        group.iter().for_each(|(_, _, name)| {
            hasher.update(name);
        });
    }
    *hasher.finalize().as_bytes()
}

/// What a copy selects, by directories.
#[derive(Debug)]
pub struct Listing {
    content: Content,
    pub(crate) root: Block,
    pub(crate) value: [u8; 32],
    pub(crate) links: [u8; 32],
    origin: TreeDigest,
    newest: Option<Time>,
}

impl Listing {
    /// Opens a listing that was saved. None if it is damaged or of another version.
    pub fn open(path: &Path) -> Option<Listing> {
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len().checked_sub(FOOTER as u64)?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, len).ok()?;
        let (place, rest) = footer.split_at(PLACE);
        let (value, rest) = rest.split_at(32);
        let (links, rest) = rest.split_at(32);
        let (origin, magic) = rest.split_at(32);
        (magic == MAGIC).then_some(())?;
        Some(Listing {
            content: Content::File(file, len),
            root: Block::decode(place),
            value: value.try_into().ok()?,
            links: links.try_into().ok()?,
            origin: origin.try_into().ok()?,
            newest: None,
        })
    }

    /// Writes it to a new file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || {
            let mut to = File::create_new(path)?;
            match &self.content {
                Content::Memory(bytes) => to.write_all(bytes)?,
                Content::File(file, len) => {
                    let mut room = vec![0; IN_MEMORY];
                    let mut at = 0;
                    while at < *len {
                        let n = room.len().min(usize::try_from(*len - at).unwrap_or(room.len()));
                        file.read_exact_at(&mut room[..n], at)?;
                        to.write_all(&room[..n])?;
                        at += n as u64;
                    }
                }
            }
            let mut footer = Vec::with_capacity(FOOTER);
            footer.extend_from_slice(&self.root.encode());
            footer.extend_from_slice(&self.value);
            footer.extend_from_slice(&self.links);
            footer.extend_from_slice(&self.origin);
            footer.extend_from_slice(&MAGIC);
            to.write_all(&footer)
        };
        write().context("write", path)
    }

    /// Where the files are from, as the caller named it.
    pub fn origin(&self) -> TreeDigest {
        self.origin
    }

    /// The last change of anything that is listed, as long as the listing is that of a walk.
    pub fn newest_change(&self) -> Option<Time> {
        self.newest
    }

    /// Number of everything that is listed.
    pub fn len(&self) -> u64 {
        self.root.below
    }

    /// True if the directory has no entries.
    pub fn is_empty(&self) -> bool {
        self.root.below == 0
    }

    /// Reads the block of a directory whose value is `value`.
    pub(crate) fn read(&self, block: Block, value: &[u8]) -> Result<BlockReader> {
        let read = self.read_block(block).context("read", "a listing")?;
        // A damaged listing must not pass for one of fewer files.
        if blake3::hash(&read.bytes[..read.entries]).as_bytes() != value {
            return Err(damaged()).context("read", "a listing");
        }
        Ok(read)
    }

    fn read_block(&self, block: Block) -> io::Result<BlockReader> {
        let len = block.places.checked_mul(PLACE as u64).and_then(|p| p.checked_add(block.entries_len));
        let len = len.filter(|len| *len <= MAX_BLOCK).ok_or_else(damaged)?;
        let len = usize::try_from(len).map_err(|_| damaged())?;
        let bytes = match &self.content {
            Content::Memory(bytes) => {
                let at = usize::try_from(block.at).map_err(|_| damaged())?;
                bytes.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(damaged)?.to_vec()
            }
            Content::File(file, total) => {
                if block.at.checked_add(len as u64).is_none_or(|end| end > *total) {
                    return Err(damaged());
                }
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, block.at)?;
                bytes
            }
        };
        Ok(BlockReader { bytes, entries: usize::try_from(block.entries_len).map_err(|_| damaged())? })
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the listing is damaged")
}

/// The block of a directory.
#[derive(Debug)]
pub(crate) struct BlockReader {
    bytes: Vec<u8>,
    entries: usize,
}

impl BlockReader {
    /// The names in order, directories with their blocks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Listed<'_>, Option<Block>)> {
        let (mut rest, mut places) = self.bytes.split_at(self.entries);
        std::iter::from_fn(move || {
            let (listed, after) = read_entry(rest)?;
            rest = after;
            let block = match listed.kind {
                Kind::Dir => {
                    let (place, after) = places.split_at_checked(PLACE)?;
                    places = after;
                    Some(Block::decode(place))
                }
                _ => None,
            };
            Some((listed, block))
        })
    }
}

/// Bytes from the kind to the value of an entry.
const FACTS: usize = 1 + 1 + 12 + 12 + 32;

fn read_entry(bytes: &[u8]) -> Option<(Listed<'_>, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
    let kind = Kind::of_tag(*rest.first()?)?;
    let (facts, rest) = rest.split_at_checked(FACTS)?;
    Some((Listed { name, kind, incidental: facts[1] != 0, facts }, rest))
}
