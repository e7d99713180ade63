//! Digests of files by their stat data, kept between builds.
//!
//! ```text
//! header  "xbstat" 0 version(u8)   count u64   generation u32   0 u32
//! entry   dev u64, ino u64, size u64, mtime seconds i64, ctime seconds i64,
//!         mtime ns u32, ctime ns u32, generation of last use u32, 0 u32, digest 32 bytes      × count
//! footer  blake3 of all before it, 32 bytes
//! ```
//!
//! Little endian; entries are sorted by a hash of device and inode, so that a look-up needs no table but a small one of
//! positions. The file is replaced by renaming, never changed; a damaged or newer one counts as empty. Two builds that save
//! at once leave one of their states, which is only slower. Entries that 16 saved generations did not use are dropped.

use super::error::{Context, Result};
use super::link::lock;
use super::meta::{Meta, Time};
use std::collections::HashMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What identifies an unchanged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatKey {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Last change of the inode; zero for files of immutable trees, whose link counts change.
    pub ctime: Time,
}

impl StatKey {
    /// The key of a file; `immutable` if it belongs to a tree of the store.
    pub fn of(meta: &Meta, immutable: bool) -> StatKey {
        let ctime = if immutable { Time::default() } else { meta.ctime };
        StatKey { dev: meta.dev, ino: meta.ino, size: meta.size, mtime: meta.mtime, ctime }
    }
}

/// Remembers digests of files. Used from many threads.
pub trait FileDigests: Sync {
    /// The digest kept for an unchanged file.
    fn get(&self, key: &StatKey) -> Option<[u8; 32]>;
    /// Keeps a digest that was computed.
    fn put(&self, key: &StatKey, digest: [u8; 32]);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDigests;

impl FileDigests for NoDigests {
    fn get(&self, _: &StatKey) -> Option<[u8; 32]> {
        None
    }

    fn put(&self, _: &StatKey, _: [u8; 32]) {}
}

const MAGIC: [u8; 8] = *b"xbstat\0\x01";
const HEADER: usize = 24;
const ENTRY: usize = 88;
const FOOTER: usize = 32;
const SHARDS: usize = 16;
/// A file changed so shortly before we began could change again without a new time.
const GRANULARITY_NANOS: i128 = 100_000_000;
const KEPT_GENERATIONS: u32 = 16;

/// A [`FileDigests`] in one file, for one context root (contexts and trees must not share one).
#[derive(Debug)]
pub struct StatIndex {
    path: PathBuf,
    data: Vec<u8>,
    count: usize,
    generation: u32,
    /// Start of each bucket of hashes.
    buckets: Vec<u32>,
    shift: u32,
    used: Vec<AtomicBool>,
    fresh: [Mutex<HashMap<StatKey, [u8; 32]>>; SHARDS],
    /// The file system's clock when the index was opened: what changes later is not trusted.
    opened: Time,
    hits: AtomicU64,
}

impl StatIndex {
    /// Loads the index at `path`, whose directory must exist. A missing or damaged file is an empty index.
    pub fn open(path: &Path) -> Result<StatIndex> {
        let opened = clock(path)?;
        let data = match fs::read(path) {
            Ok(data) => data,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).context("read", path),
        };
        let count = check(&data).unwrap_or(0);
        let data = if count == 0 { Vec::new() } else { data };
        let generation = data.get(16..20).map_or(0, read_u32);
        let bits = count.max(1).ilog2().min(24);
        let mut index = StatIndex {
            path: path.to_path_buf(),
            count,
            generation,
            buckets: Vec::with_capacity((1 << bits) + 1),
            shift: 64 - bits.max(1),
            used: (0..count).map(|_| AtomicBool::new(false)).collect(),
            fresh: Default::default(),
            opened,
            hits: AtomicU64::new(0),
            data,
        };
        index.fill_buckets();
        Ok(index)
    }

    fn fill_buckets(&mut self) {
        let buckets = 1_usize << (64 - self.shift);
        for at in 0..self.count {
            let bucket = usize::try_from(self.hash_at(at) >> self.shift).unwrap_or(0);
            while self.buckets.len() <= bucket {
                self.buckets.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
        }
        self.buckets.resize(buckets + 1, u32::try_from(self.count).unwrap_or(u32::MAX));
    }

    fn entry(&self, at: usize) -> &[u8] {
        &self.data[HEADER + at * ENTRY..HEADER + (at + 1) * ENTRY]
    }

    fn hash_at(&self, at: usize) -> u64 {
        let entry = self.entry(at);
        hash(read_u64(&entry[..8]), read_u64(&entry[8..16]))
    }

    /// The file system's time when the index was opened.
    pub fn opened(&self) -> Time {
        self.opened
    }

    /// Number of look-ups that were answered.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Writes what was learnt, if anything. True if the file was replaced.
    pub fn save(self) -> Result<bool> {
        let limit = nanos(self.opened) - GRANULARITY_NANOS;
        let mut entries: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut changed: HashMap<(u64, u64), ()> = HashMap::new();
        let generation = self.generation.wrapping_add(1);
        for shard in &self.fresh {
            for (key, digest) in lock(shard).iter() {
                if nanos(key.ctime) < limit && nanos(key.mtime) < limit {
                    changed.insert((key.dev, key.ino), ());
                    entries.push((hash(key.dev, key.ino), encode(key, generation, digest)));
                }
            }
        }
        if entries.is_empty() {
            return Ok(false);
        }
        for at in 0..self.count {
            let mut entry = self.entry(at).to_vec();
            if changed.contains_key(&(read_u64(&entry[..8]), read_u64(&entry[8..16]))) {
                continue;
            }
            if self.used[at].load(Ordering::Relaxed) {
                entry[48..52].copy_from_slice(&generation.to_le_bytes());
            } else if generation.wrapping_sub(read_u32(&entry[48..52])) > KEPT_GENERATIONS {
                continue;
            }
            entries.push((self.hash_at(at), entry));
        }
        entries.sort_unstable();
        self.write(generation, &entries).map(|()| true)
    }

    fn write(&self, generation: u32, entries: &[(u64, Vec<u8>)]) -> Result<()> {
        let (temporary, file) = scratch(&self.path)?;
        let mut out = Summed { out: BufWriter::new(file), hasher: blake3::Hasher::new() };
        let written = (|| {
            out.write_all(&MAGIC)?;
            out.write_all(&(entries.len() as u64).to_le_bytes())?;
            out.write_all(&generation.to_le_bytes())?;
            out.write_all(&[0; 4])?;
            entries.iter().try_for_each(|(_, entry)| out.write_all(entry))?;
            let sum = out.hasher.finalize();
            out.out.write_all(sum.as_bytes())?;
            out.out.flush()?;
            fs::rename(&temporary, &self.path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.context("write", &self.path)
    }
}

impl FileDigests for StatIndex {
    fn get(&self, key: &StatKey) -> Option<[u8; 32]> {
        let hash = hash(key.dev, key.ino);
        if self.count > 0 {
            let bucket = usize::try_from(hash >> self.shift).unwrap_or(0);
            let wanted = encode_key(key);
            for at in self.buckets[bucket]..self.buckets[bucket + 1] {
                let at = at as usize;
                let entry = self.entry(at);
                // The inode tells most apart, the device none.
                if entry[8..16] == wanted[8..16] && entry[..48] == wanted {
                    self.used[at].store(true, Ordering::Relaxed);
                    self.hits.fetch_add(1, Ordering::Relaxed);
                    return entry[56..].try_into().ok();
                }
            }
        }
        lock(&self.fresh[shard(hash)]).get(key).copied()
    }

    fn put(&self, key: &StatKey, digest: [u8; 32]) {
        lock(&self.fresh[shard(hash(key.dev, key.ino))]).insert(*key, digest);
    }
}

/// A writer that hashes what passes.
struct Summed<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Summed<W> {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Number of entries if the file is whole and of our version.
fn check(data: &[u8]) -> Option<usize> {
    let count = usize::try_from(read_u64(data.get(8..16)?)).ok()?;
    let size = count.checked_mul(ENTRY)?.checked_add(HEADER + FOOTER)?;
    let whole = data[..8] == MAGIC && data.len() == size && u32::try_from(count).is_ok();
    let (body, footer) = data.split_at(data.len().checked_sub(FOOTER)?);
    (whole && blake3::hash(body).as_bytes() == footer).then_some(count)
}

/// The time that the file system gives to a file made now, beside `path`.
pub(crate) fn clock(path: &Path) -> Result<Time> {
    let (temporary, file) = scratch(path)?;
    let meta = rustix::fs::fstat(&file).context("stat", path);
    fs::remove_file(&temporary).context("remove", path)?;
    Ok(Meta::of(&meta?).mtime)
}

fn scratch(path: &Path) -> Result<(PathBuf, fs::File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary);
    let file = fs::File::create_new(&temporary).context("create", path)?;
    Ok((temporary, file))
}

fn encode_key(key: &StatKey) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..8].copy_from_slice(&key.dev.to_le_bytes());
    bytes[8..16].copy_from_slice(&key.ino.to_le_bytes());
    bytes[16..24].copy_from_slice(&key.size.to_le_bytes());
    bytes[24..32].copy_from_slice(&key.mtime.seconds.to_le_bytes());
    bytes[32..40].copy_from_slice(&key.ctime.seconds.to_le_bytes());
    bytes[40..44].copy_from_slice(&key.mtime.nanos.to_le_bytes());
    bytes[44..48].copy_from_slice(&key.ctime.nanos.to_le_bytes());
    bytes
}

fn encode(key: &StatKey, generation: u32, digest: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENTRY);
    bytes.extend_from_slice(&encode_key(key));
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(digest);
    bytes
}

fn nanos(time: Time) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

/// A mix whose high bits are evenly spread (splitmix64).
fn hash(dev: u64, ino: u64) -> u64 {
    let mut x = ino.wrapping_add(dev.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn shard(hash: u64) -> usize {
    usize::try_from(hash % SHARDS as u64).unwrap_or(0)
}

fn read_u64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

fn read_u32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |v, b| v << 8 | u32::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> StatKey {
        StatKey { dev: 1, ino, size: ino * 3, mtime: Time::from_seconds(5), ctime: Time { seconds: 6, nanos: 7 } }
    }

    #[test]
    fn entries_survive_and_changes_are_noticed() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("index");
        let index = StatIndex::open(&path).expect("open");
        for ino in 0..5000 {
            index.put(&key(ino), [u8::try_from(ino % 251).unwrap_or(0); 32]);
        }
        assert!(index.save().expect("save"));
        let index = StatIndex::open(&path).expect("open");
        for ino in 0..5000 {
            assert_eq!(index.get(&key(ino)), Some([u8::try_from(ino % 251).unwrap_or(0); 32]));
            assert_eq!(index.get(&StatKey { size: 1, ..key(ino) }), None);
            assert_eq!(index.get(&StatKey { ctime: Time::from_seconds(6), ..key(ino) }), None);
        }
        assert_eq!(index.get(&key(5000)), None);
        assert!(!index.save().expect("save"), "nothing new, nothing written");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn fresh_files_and_damage_are_not_trusted() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("index");
        let index = StatIndex::open(&path).expect("open");
        let racy = StatKey { ctime: index.opened, ..key(1) };
        index.put(&racy, [1; 32]);
        index.put(&key(2), [2; 32]);
        assert_eq!(index.get(&racy), Some([1; 32]), "within one build it is as good as any");
        index.save().expect("save");
        let index = StatIndex::open(&path).expect("open");
        assert_eq!((index.get(&racy), index.get(&key(2))), (None, Some([2; 32])));
        let mut bytes = fs::read(&path).expect("read");
        bytes[HEADER + 60] ^= 1;
        fs::write(&path, bytes).expect("write");
        assert_eq!(StatIndex::open(&path).expect("open").get(&key(2)), None);
    }

    #[test]
    fn unused_entries_age() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("index");
        for round in 0..=KEPT_GENERATIONS + 1 {
            let index = StatIndex::open(&path).expect("open");
            let _ = index.get(&key(0));
            if round == 0 {
                index.put(&key(0), [0; 32]);
                index.put(&key(1), [1; 32]);
            }
            index.put(&key(100 + u64::from(round)), [9; 32]);
            index.save().expect("save");
        }
        let index = StatIndex::open(&path).expect("open");
        assert_eq!((index.get(&key(0)), index.get(&key(1))), (Some([0; 32]), None));
    }
}
