//! Opening a root, sessions, staging, and the check of everything.

use crate::trash::{self, Trash};
use crate::tree::Marks;
use crate::{At, FileLock, StoreError, index};
use rusqlite::Connection;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FORMAT: &str = "xbuild-store 1";
const FOLDERS: [&str; 7] = ["blobs/sha256", "trees", "cachemounts", "staging", "trash", "contexts", "locks"];

/// An open store. One per process is enough; all methods may be called from several threads and block.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    db: Mutex<Connection>,
    owner: String,
    /// When the session began: what is marked as used since then is safe.
    began: i64,
    epoch: String,
    counter: AtomicU64,
    trash: Arc<Trash>,
    marks: OnceLock<Marks>,
    _session: FileLock,
}

/// A directory for work in progress; removed when dropped, unless it was published.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    trash: Arc<Trash>,
}

impl Staging {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory away: it is not removed on drop.
    pub(crate) fn into_path(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }

    /// Takes something out that is not to be published.
    pub fn discard(&self, name: &str) -> Result<(), StoreError> {
        self.trash.put(&self.path.join(name))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is swept with the session. An empty one needs no trash.
        if !self.path.as_os_str().is_empty() && fs::remove_dir(&self.path).is_err() {
            let _ = self.trash.put(&self.path);
        }
    }
}

/// Something `store check` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One sentence.
    pub what: String,
    /// It was mended.
    pub repaired: bool,
}

impl Store {
    /// Opens the store at `root`, making it if there is none.
    ///
    /// # Errors
    /// A root of another format, and I/O errors.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let owner = format!("{}-{:x}", std::process::id(), nanos());
        let format = root.join("FORMAT");
        let read = fs::read_to_string(&format);
        check_owner(root, &read)?;
        match read {
            Ok(found) if found.trim() == FORMAT => {}
            Ok(found) => {
                let found = found.trim().chars().take(60).collect();
                return Err(StoreError::Format { root: root.to_owned(), found, expected: FORMAT });
            }
            Err(_) => create(root, &format, &owner)?,
        }
        let root = root.canonicalize().at("open", root)?;
        let session_path = root.join("locks").join(format!("session-{owner}"));
        // Who looks whether the session lives has its lock for a moment.
        let session = FileLock::wait(|| FileLock::try_take(&session_path), &|| false)?;
        let session = session.ok_or_else(|| StoreError::Missing("an own session".into()))?;
        let began = now_ms();
        session.file().write_all(began.to_string().as_bytes()).at("write", &session_path)?;
        let epoch = epoch_of(&root)?;
        let db = open_index(&root, &epoch)?;
        let trash = Arc::new(Trash::new(root.join("trash"), &owner));
        Ok(Self {
            root,
            db: Mutex::new(db),
            owner,
            began,
            epoch,
            counter: AtomicU64::new(0),
            trash,
            marks: OnceLock::new(),
            _session: session,
        })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Overlayfs's marks in this store's trees: those that only the machine's root may set, or a user's.
    pub fn marks(&self) -> Marks {
        // Taking away what is not there changes nothing and says whether it would be allowed.
        *self.marks.get_or_init(|| match rustix::fs::removexattr(&self.root, "trusted.overlay.probe") {
            Err(rustix::io::Errno::PERM) => Marks::User,
            _ => Marks::Trusted,
        })
    }

    /// A new directory to write in, on the same filesystem as everything else.
    pub fn staging(&self) -> Result<Staging, StoreError> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("staging").join(&self.owner).join(n.to_string());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("make", &path)?;
        Ok(Staging { path, trash: Arc::clone(&self.trash) })
    }

    /// Waits for the right to do the work named `name`, so that equal work is done once, in this process and others.
    /// `None` if `stop` said so first.
    pub fn lock(&self, name: &str, stop: &dyn Fn() -> bool) -> Result<Option<FileLock>, StoreError> {
        let path = self.root.join("locks").join(name);
        FileLock::wait(|| FileLock::try_take(&path), stop)
    }

    /// The same right, together with others that ask for it in this way.
    pub fn share_lock(&self, name: &str, stop: &dyn Fn() -> bool) -> Result<Option<FileLock>, StoreError> {
        let path = self.root.join("locks").join(name);
        FileLock::wait(|| FileLock::try_share(&path), stop)
    }

    /// The right to do the work named `name` if nobody has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<FileLock>, StoreError> {
        FileLock::try_take(&self.root.join("locks").join(name))
    }

    /// The directory of a cache mount, with whether it is new. The caller sets owner and mode of a new one.
    pub fn cache_mount(&self, id: &str) -> Result<(PathBuf, bool), StoreError> {
        let name = blake3::hash(id.as_bytes()).to_hex();
        let path = self.root.join("cachemounts").join(&name[..32]);
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => Ok((path, true)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok((path, false)),
            Err(e) => Err(e).at("make", &path),
        }
    }

    /// Puts the cache mount `id` out of the way, so that the next use finds it empty.
    pub fn clear_cache_mount(&self, id: &str) -> Result<(), StoreError> {
        let (path, new) = self.cache_mount(id)?;
        if !new {
            self.discard(&path)?;
            self.cache_mount(id)?;
        }
        Ok(())
    }

    /// Where the stat index of the context named `name` is kept.
    pub fn context_index(&self, name: &str) -> PathBuf {
        self.root.join("contexts").join(&blake3::hash(name.as_bytes()).to_hex()[..32])
    }

    /// Puts everything written so far on disk and marks it so.
    pub fn sync(&self) -> Result<(), StoreError> {
        let dir = fs::File::open(&self.root).at("open", &self.root)?;
        rustix::fs::syncfs(&dir).at("sync", &self.root)?;
        let db = self.db();
        db.execute("UPDATE trees SET epoch=NULL WHERE epoch=?1", [&self.epoch])?;
        db.execute("UPDATE blobs SET epoch=NULL WHERE epoch=?1", [&self.epoch])?;
        Ok(())
    }

    /// Whether something was found to be so since the machine was started.
    pub fn knows(&self, fact: &str) -> Result<bool, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT 1 FROM facts WHERE name=?1 AND value=?2")?;
        Ok(query.exists([fact, &self.epoch])?)
    }

    /// Remembers that something was found to be so, until the machine is started again.
    pub fn remember(&self, fact: &str) -> Result<(), StoreError> {
        self.db().execute("INSERT OR REPLACE INTO facts VALUES (?1, ?2)", [fact, &self.epoch])?;
        Ok(())
    }

    /// Moves a file or directory to the trash, whence it is freed later.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        self.trash.put(path)
    }

    /// Frees what is in the trash and what dead sessions left, and shortens the index' log. Slow; not for the build path.
    pub fn sweep(&self) -> Result<(), StoreError> {
        if free_leftovers(&self.root)?.of_dead {
            self.discard_orphans()?;
        }
        if index::has_long_log(&index_path(&self.root)) {
            index::shorten_log(&self.db())?;
        }
        Ok(())
    }

    /// Whether the file system has less than a twentieth free, so that cache should go.
    pub fn is_low_on_space(&self) -> bool {
        rustix::fs::statvfs(&self.root).is_ok_and(|fs| fs.f_bavail < fs.f_blocks / 20)
    }

    /// Frees what is in the trash, and half of the cache where space is low.
    pub fn collect(&self) -> Result<(), StoreError> {
        match self.is_low_on_space() {
            true => self.make_room().map(drop),
            false => self.sweep(),
        }
    }

    /// Frees what is in the trash and half of the cache; false if there was no cache that nobody uses.
    pub fn make_room(&self) -> Result<bool, StoreError> {
        // First, since the index needs room, too.
        self.sweep()?;
        let used: u64 = self.usage()?.iter().map(|u| u.size).sum();
        let pruned = self.prune(&crate::PruneFilter { keep_bytes: Some(used / 2), ..Default::default() })?;
        self.sweep()?;
        Ok(!pruned.entries.is_empty())
    }

    /// Whether there is anything for [`Store::sweep`] to do.
    pub fn needs_sweep(&self) -> bool {
        // Often there is little, and it is being freed already.
        self.trash.settle(Duration::from_millis(5));
        let some = |folder| {
            fs::read_dir(self.root.join(folder)).is_ok_and(|d| d.flatten().any(|e| e.file_name() != *self.owner))
        };
        some("trash") || some("staging") || index::has_long_log(&index_path(&self.root))
    }

    pub(crate) fn session_is_live(&self, owner: &str) -> Result<bool, StoreError> {
        Ok(owner == self.owner || is_live(&self.root, owner)?)
    }

    /// When the oldest live session began, in milliseconds since the epoch. Locks of dead sessions are removed.
    pub(crate) fn oldest_session(&self, besides_own: bool) -> Result<i64, StoreError> {
        let locks = self.root.join("locks");
        let mut oldest = now_ms();
        for entry in fs::read_dir(&locks).at("read", &locks)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(owner) = name.strip_prefix("session-") else {
                continue;
            };
            if (besides_own && owner == self.owner) || !(owner == self.owner || self.session_is_live(owner)?) {
                continue;
            }
            let began = fs::read_to_string(entry.path()).ok().and_then(|t| t.trim().parse().ok());
            oldest = oldest.min(began.unwrap_or(0));
        }
        Ok(oldest)
    }

    pub(crate) fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a mark of use protects what it is on from collection while this process lives.
    pub(crate) fn is_safe(&self, last_used: i64) -> bool {
        last_used >= self.began
    }

    pub(crate) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// A name that tells whose it is.
    pub(crate) fn new_name(&self) -> String {
        format!("{}-{}", self.owner, self.counter.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.is_low_on_space() {
            // What is left to another process is in the way of the next one.
            self.trash.settle(Duration::from_secs(10));
        }
        // Only if empty: a live process's staging is its own.
        let _ = fs::remove_dir(self.root.join("staging").join(&self.owner));
    }
}

/// Refuses a store of somebody else's: what is written there would be of no use to one of both.
fn check_owner(root: &Path, format: &io::Result<String>) -> Result<(), StoreError> {
    let closed = format.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let owner = fs::metadata(root).map(|about| about.uid());
    match owner {
        Ok(owner) if (closed || format.is_ok()) && owner != rustix::process::geteuid().as_raw() => {
            Err(StoreError::Foreign { root: root.to_owned(), owner })
        }
        _ => Ok(()),
    }
}

fn index_path(root: &Path) -> PathBuf {
    root.join("index.db")
}

/// Opens the index. Where there is no room for that, rubbish is freed first: nothing can be pruned before.
fn open_index(root: &Path, epoch: &str) -> Result<Connection, StoreError> {
    use rusqlite::ErrorCode::{CannotOpen, SystemIoFailure};
    let path = index_path(root);
    let error = match index::open(&path, epoch) {
        Ok(db) => return Ok(db),
        Err(error) => error,
    };
    let by_disk = match &error {
        StoreError::Full(_) => true,
        StoreError::Index(e) => matches!(e.sqlite_error_code(), Some(CannotOpen | SystemIoFailure)),
        _ => false,
    };
    if !by_disk {
        return Err(error);
    }
    let freed = free_leftovers(root).is_ok_and(|freed| freed.any);
    // SQLite does not say why a file could not be made longer; this does.
    let probe = root.join(format!("staging/.probe-{}", std::process::id()));
    let written = fs::write(&probe, [0; 64 << 10]);
    let _ = fs::remove_file(&probe);
    written.at("write", &probe)?;
    if freed { index::open(&path, epoch) } else { Err(error) }
}

fn is_live(root: &Path, owner: &str) -> Result<bool, StoreError> {
    let path = root.join("locks").join(format!("session-{owner}"));
    Ok(path.try_exists().at("look for", &path)? && FileLock::try_take(&path)?.is_none())
}

/// What was there to free.
#[derive(Default)]
struct Freed {
    any: bool,
    of_dead: bool,
}

/// Frees the trash, and the staging directories of dead sessions.
fn free_leftovers(root: &Path) -> Result<Freed, StoreError> {
    let mut freed = Freed::default();
    for folder in ["trash", "staging"] {
        let folder_path = root.join(folder);
        for entry in fs::read_dir(&folder_path).at("read", &folder_path)?.flatten() {
            if folder == "staging" {
                if is_live(root, &entry.file_name().to_string_lossy())? {
                    continue;
                }
                freed.of_dead = true;
            }
            trash::free(&entry.path())?;
            freed.any = true;
        }
    }
    Ok(freed)
}

fn create(root: &Path, format: &Path, owner: &str) -> Result<(), StoreError> {
    for folder in FOLDERS {
        let path = root.join(folder);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("make", &path)?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).at("protect", root)?;
    let part = root.join(format!("FORMAT.{owner}"));
    // A name without its content would make the store unreadable after a power cut.
    let written = fs::File::create(&part).and_then(|mut file| {
        writeln!(file, "{FORMAT}")?;
        file.sync_all()
    });
    written.at("write", &part)?;
    fs::rename(&part, format).at("rename", &part)
}

/// Identifies boot and mount: what was not synced in another epoch may be gone.
fn epoch_of(root: &Path) -> Result<String, StoreError> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let stat = rustix::fs::statx(CWD, root, AtFlags::empty(), MNT_ID_UNIQUE).at("look at", root)?;
    Ok(format!("{} {}:{} {}", boot.trim(), stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

fn nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}
