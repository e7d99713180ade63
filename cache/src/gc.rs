//! What the store holds, and removing it.

use crate::store::now_ms;
use crate::{At, Problem, Store, StoreError};
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use xbuild_oci::{Digest, Document};

/// Kinds of entries of `du`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageKind {
    /// A step's result.
    Regular,
    /// A base image's layer.
    Image,
    /// A cache mount.
    CacheMount,
    /// A blob.
    Blob,
}

/// One entry of `du`.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Name of the entry.
    pub id: String,
    /// What it is.
    pub kind: UsageKind,
    /// Bytes on disk.
    pub size: u64,
    /// When it was made, in milliseconds since 1970.
    pub created: i64,
    /// When it was last used.
    pub last_used: i64,
    /// How often.
    pub uses: u64,
    /// For people.
    pub description: String,
    /// Nothing holds it: it goes with the next `prune`.
    pub reclaimable: bool,
}

/// What to remove.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Also records whose files an image has (the image keeps its files).
    pub all: bool,
    /// Only what was not used for this long.
    pub unused_for: Option<Duration>,
    /// Stop when the cache is this small, in bytes.
    pub keep_bytes: Option<u64>,
    /// Only records whose description contains this.
    pub description: Option<String>,
    /// Only this kind.
    pub kind: Option<&'static str>,
}

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Names of entries.
    pub entries: Vec<String>,
    /// Bytes that become free.
    pub bytes: u64,
}

impl Store {
    /// Everything that takes room.
    pub fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.count_sizes()?;
        let mut entries = self.tree_usage()?;
        entries.extend(self.blob_usage()?);
        let mounts = self.root().join("cachemounts");
        for entry in fs::read_dir(&mounts).at("read", &mounts)?.flatten() {
            let used = entry.metadata().map_or(0, |m| m.mtime() * 1000);
            entries.push(Usage {
                id: format!("cache-{}", entry.file_name().to_string_lossy()),
                kind: UsageKind::CacheMount,
                size: disk_size(&entry.path()),
                created: used,
                last_used: used,
                uses: 0,
                description: "cache mount".into(),
                reclaimable: true,
            });
        }
        Ok(entries)
    }

    fn tree_usage(&self) -> Result<Vec<Usage>, StoreError> {
        let held = self.held_trees()?;
        let db = self.db();
        let mut query = db.prepare(
            "SELECT t.id, t.size, t.created, max(t.last_used, coalesce(max(r.last_used), 0)), coalesce(sum(r.uses), 0),
                    coalesce(max(r.description), '') FROM trees t LEFT JOIN records r ON r.tree=t.id GROUP BY t.id ORDER BY t.id",
        )?;
        let rows = query.query_map([], |row| {
            let id: i64 = row.get(0)?;
            let description: String = row.get(5)?;
            Ok(Usage {
                id: format!("tree-{id}"),
                kind: if description.is_empty() { UsageKind::Image } else { UsageKind::Regular },
                size: row.get::<_, Option<i64>>(1)?.unwrap_or(0) as u64,
                created: row.get(2)?,
                last_used: row.get(3)?,
                uses: row.get::<_, i64>(4)? as u64,
                description,
                reclaimable: !held.contains(&id),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn blob_usage(&self) -> Result<Vec<Usage>, StoreError> {
        let held = self.held_blobs()?;
        let db = self.db();
        let mut query = db.prepare("SELECT digest, size, created, last_used FROM blobs ORDER BY created")?;
        let rows = query.query_map([], |row| {
            let digest = Digest::from_bytes(row.get(0)?);
            Ok(Usage {
                id: digest.to_string(),
                kind: UsageKind::Blob,
                size: row.get::<_, i64>(1)? as u64,
                created: row.get(2)?,
                last_used: row.get(3)?,
                uses: 0,
                description: String::new(),
                reclaimable: !held.contains(&digest),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes cache that nothing live holds. Names are gone when this returns; the bytes are freed by [`Store::sweep`].
    pub fn prune(&self, filter: &PruneFilter) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        let now = now_ms();
        let age = filter.unused_for.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        // What was made in the very millisecond in which a session began may be the session's.
        let before = self.oldest_session(true)?.saturating_sub(1).min(now.saturating_sub(age));
        let mut excess = match filter.keep_bytes {
            Some(keep) => self.usage()?.iter().map(|u| u.size).sum::<u64>().saturating_sub(keep),
            None => u64::MAX,
        };
        if excess == 0 {
            return Ok(pruned);
        }
        if filter.kind.is_none_or(|k| k == "regular") {
            self.prune_records(filter, before, &mut excess, &mut pruned)?;
        }
        if filter.kind.is_none_or(|k| k == "exec.cachemount") && filter.description.is_none() && excess > 0 {
            self.prune_cache_mounts(before, age, &mut excess, &mut pruned)?;
        }
        if filter.kind.is_none() && filter.description.is_none() && excess > 0 {
            self.prune_blobs(before, &mut pruned)?;
        }
        Ok(pruned)
    }

    /// Removes the oldest records, then every tree that nothing stands on or names.
    fn prune_records(
        &self,
        filter: &PruneFilter,
        before: i64,
        excess: &mut u64,
        out: &mut Pruned,
    ) -> Result<(), StoreError> {
        if filter.keep_bytes.is_some() {
            self.count_sizes()?;
        }
        let pattern = filter.description.as_deref().map_or("%".to_owned(), |d| format!("%{d}%"));
        let old: Vec<i64> = {
            let db = self.db();
            let mut query = db.prepare(
                "SELECT id FROM records WHERE last_used<=?1 AND description LIKE ?2 ORDER BY last_used, id DESC",
            )?;
            query.query_map(params![before, pattern], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        let kept = if filter.all { BTreeSet::new() } else { self.records_of_images()? };
        let batch = if filter.keep_bytes.is_some() { 16 } else { old.len().max(1) };
        for records in old.chunks(batch) {
            {
                let mut db = self.db();
                let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                for record in records {
                    if kept.contains(record) {
                        continue;
                    }
                    // Used again in the meantime: it stays.
                    if change.execute("DELETE FROM records WHERE id=?1 AND last_used<=?2", params![record, before])?
                        == 1
                    {
                        change.execute("DELETE FROM keys WHERE record=?1", [record])?;
                    }
                }
                change.commit()?;
            }
            let freed = self.drop_trees(before, &mut out.entries)?;
            out.bytes += freed;
            *excess = excess.saturating_sub(freed);
            if *excess == 0 {
                return Ok(());
            }
        }
        if old.is_empty() {
            out.bytes += self.drop_trees(before, &mut out.entries)?;
        }
        Ok(())
    }

    /// Drops trees without records, images or trees above; returns the bytes that become free.
    fn drop_trees(&self, before: i64, entries: &mut Vec<String>) -> Result<u64, StoreError> {
        let held = self.held_trees()?;
        let mut gone = Vec::new();
        {
            let mut db = self.db();
            let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let rows: Vec<(i64, String, Option<i64>)> = change
                .prepare("SELECT id, dirs || ' ' || coalesce(flat, ''), size FROM trees WHERE last_used<=?1 ORDER BY id DESC")?
                .query_map([before], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<Result<_, _>>()?;
            for (id, dirs, size) in rows.into_iter().filter(|(id, ..)| !held.contains(id)) {
                let used = "SELECT 1 FROM trees WHERE parent=?1 UNION ALL SELECT 1 FROM records WHERE tree=?1 LIMIT 1";
                if change.prepare_cached(used)?.exists([id])? {
                    continue;
                }
                change.execute("DELETE FROM trees WHERE id=?1", [id])?;
                gone.push((id, dirs, size));
            }
            change.commit()?;
        }
        let shared = self.named_directories()?;
        let mut bytes = 0;
        for (id, dirs, size) in gone {
            let (kept, free): (Vec<_>, Vec<_>) = dirs.split_ascii_whitespace().partition(|d| shared.contains(*d));
            for dir in free {
                self.discard(&self.root().join("trees").join(dir))?;
            }
            if kept.is_empty() {
                bytes += size.unwrap_or(0) as u64;
            } else {
                // It counts in another tree now.
                self.db().execute("UPDATE trees SET size=NULL WHERE dirs LIKE '% ' || ?1", [kept[kept.len() - 1]])?;
            }
            entries.push(format!("tree-{id}"));
        }
        Ok(bytes)
    }

    fn prune_cache_mounts(&self, before: i64, age: i64, excess: &mut u64, out: &mut Pruned) -> Result<(), StoreError> {
        let mounts = self.root().join("cachemounts");
        for entry in fs::read_dir(&mounts).at("read", &mounts)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let used = entry.metadata().map_or(0, |m| m.mtime() * 1000);
            let busy = self.try_lock(&format!("mount-{name}"))?;
            if busy.is_none() || (age > 0 && used > before) || *excess == 0 {
                continue;
            }
            let size = disk_size(&entry.path());
            self.discard(&entry.path())?;
            *excess = excess.saturating_sub(size);
            out.bytes += size;
            out.entries.push(format!("cache-{name}"));
        }
        Ok(())
    }

    fn prune_blobs(&self, before: i64, out: &mut Pruned) -> Result<(), StoreError> {
        let held = self.held_blobs()?;
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let rows: Vec<([u8; 32], i64)> = change
            .prepare("SELECT digest, size FROM blobs WHERE last_used<=?1")?
            .query_map([before], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let gone: Vec<_> = rows.into_iter().filter(|(d, _)| !held.contains(&Digest::from_bytes(*d))).collect();
        for (digest, _) in &gone {
            change.execute("DELETE FROM blobs WHERE digest=?1", [digest])?;
            change.execute("DELETE FROM packings WHERE digest=?1", [digest])?;
        }
        change.commit()?;
        drop(db);
        let digests: Vec<Digest> = gone.iter().map(|(digest, _)| Digest::from_bytes(*digest)).collect();
        self.discard_blobs(&digests)?;
        out.bytes += gone.iter().map(|(_, size)| *size as u64).sum::<u64>();
        out.entries.extend(digests.iter().map(Digest::to_string));
        Ok(())
    }

    /// Manifests, configurations and layers that an image or a container names.
    fn held_blobs(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let mut held = BTreeSet::new();
        let mut open: Vec<Digest> = self.images()?.into_iter().map(|i| i.target).collect();
        open.extend(self.leases()?.into_iter().map(|lease| lease.manifest));
        while let Some(digest) = open.pop() {
            if !held.insert(digest) {
                continue;
            }
            // A damaged manifest holds nothing; `store check` names it. One that cannot be read now may hold anything.
            match self.sound_blob(digest)?.and_then(|bytes| Document::parse(&bytes, "").ok()) {
                Some(Document::Index(index)) => open.extend(index.manifests.iter().map(|d| d.digest)),
                Some(Document::Manifest(manifest)) => {
                    held.insert(manifest.config.digest);
                    held.extend(manifest.layers.iter().map(|l| l.digest));
                }
                None => {}
            }
        }
        Ok(held)
    }

    /// Records whose files an image has anyway: without `all` they stay, so that the image's next build is cached.
    fn records_of_images(&self) -> Result<BTreeSet<i64>, StoreError> {
        let held = self.held_trees()?;
        let db = self.db();
        let mut query = db.prepare("SELECT id, tree FROM records")?;
        let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let rows: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().filter(|(_, tree)| held.contains(tree)).map(|(id, _)| id).collect())
    }

    /// Trees that images and containers need, with all they stand on.
    fn held_trees(&self) -> Result<BTreeSet<i64>, StoreError> {
        let blobs = self.held_blobs()?;
        let db = self.db();
        let mut open = Vec::new();
        for digest in blobs {
            let mut query = db.prepare_cached("SELECT tree FROM manifests WHERE digest=?1 AND tree IS NOT NULL")?;
            open.extend(query.query_row([digest.as_bytes()], |row| row.get::<_, i64>(0)).optional()?);
        }
        open.extend(self.leases()?.into_iter().map(|lease| lease.tree.0));
        let mut held = BTreeSet::new();
        while let Some(id) = open.pop() {
            if id != 0 && held.insert(id) {
                let mut query = db.prepare_cached("SELECT parent FROM trees WHERE id=?1")?;
                open.extend(query.query_row([id], |row| row.get::<_, i64>(0)).optional()?);
            }
        }
        Ok(held)
    }

    /// Counts the size of every tree that was not counted yet. A directory of several trees counts in the oldest.
    fn count_sizes(&self) -> Result<(), StoreError> {
        let rows: Vec<(i64, String)> = {
            let db = self.db();
            let mut query = db.prepare("SELECT id, dirs, size IS NULL FROM trees ORDER BY id")?;
            let mut rows = query.query([])?;
            let (mut seen, mut uncounted) = (BTreeSet::new(), Vec::new());
            while let Some(row) = rows.next()? {
                let dirs: String = row.get(1)?;
                let own: Vec<_> = dirs.split_ascii_whitespace().filter(|d| seen.insert((*d).to_owned())).collect();
                if row.get(2)? {
                    uncounted.push((row.get(0)?, own.join(" ")));
                }
            }
            uncounted
        };
        let trees = self.root().join("trees");
        let sizes: Vec<(i64, u64)> = rows
            .into_iter()
            .map(|(id, dirs)| (id, dirs.split_ascii_whitespace().map(|d| disk_size(&trees.join(d))).sum()))
            .collect();
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for (id, size) in sizes {
            change.prepare_cached("UPDATE trees SET size=?2 WHERE id=?1")?.execute(params![id, size as i64])?;
        }
        Ok(change.commit()?)
    }

    /// Verifies that every row has its files and every blob its digest; with `repair` drops what does not hold.
    ///
    /// What died processes left half done is no problem: it is thrown away as by [`Store::sweep`].
    pub fn check(&self, repair: bool) -> Result<Vec<Problem>, StoreError> {
        self.discard_orphans()?;
        let mut problems = Vec::new();
        let integrity: String = self.db().query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if integrity != "ok" {
            problems.push(Problem { what: format!("the index is damaged: {integrity}"), repaired: false });
        }
        self.check_trees(repair, &mut problems)?;
        let sound = self.check_blobs(repair, &mut problems)?;
        self.check_images(&sound, repair, &mut problems)?;
        Ok(problems)
    }

    fn check_trees(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
        let rows: Vec<(i64, i64, String)> = {
            let db = self.db();
            let all = "SELECT id, parent, dirs || ' ' || coalesce(flat, '') FROM trees ORDER BY id";
            let mut query = db.prepare(all)?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?
        };
        let mut sound = BTreeSet::from([0]);
        for (id, parent, dirs) in &rows {
            let mut missing = None;
            for name in dirs.split_ascii_whitespace() {
                let files = self.root().join("trees").join(name).join("fs");
                if !files.try_exists().at("look for", &files)? || !files.is_dir() {
                    missing = Some(name);
                    break;
                }
            }
            match missing {
                None if sound.contains(parent) => {
                    sound.insert(*id);
                }
                missing => {
                    let why =
                        missing.map_or("the tree below it is gone".to_owned(), |d| format!("`trees/{d}` is gone"));
                    problems.push(Problem { what: format!("tree {id}: {why}"), repaired: repair });
                    if repair {
                        self.db().execute("DELETE FROM trees WHERE id=?1", [id])?;
                    }
                }
            }
        }
        if repair {
            let db = self.db();
            db.execute("DELETE FROM records WHERE tree<>0 AND tree NOT IN (SELECT id FROM trees)", [])?;
            db.execute("DELETE FROM keys WHERE record NOT IN (SELECT id FROM records)", [])?;
        }
        Ok(())
    }

    /// The blobs that hold what they should.
    fn check_blobs(&self, repair: bool, problems: &mut Vec<Problem>) -> Result<BTreeSet<Digest>, StoreError> {
        let rows: Vec<([u8; 32], i64)> = {
            let db = self.db();
            let mut query = db.prepare("SELECT digest, size FROM blobs")?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?
        };
        let mut sound = BTreeSet::new();
        for (digest, size) in rows {
            let digest = Digest::from_bytes(digest);
            let path = self.blob_path(digest);
            let found = fs::File::open(&path).and_then(|mut file| {
                let mut hash = xbuild_oci::Sha256Writer::new(std::io::sink());
                std::io::copy(&mut file, &mut hash)?;
                Ok(hash.finish())
            });
            let why = match found {
                Ok((_, found, length)) if found == digest && length == size as u64 => {
                    sound.insert(digest);
                    continue;
                }
                Ok(_) => "has other bytes than its name says".to_owned(),
                Err(e) if is_ours(&e) => return Err(e).at("read", &path),
                Err(e) => format!("cannot be read: {e}"),
            };
            problems.push(Problem { what: format!("the blob {digest} {why}"), repaired: repair });
            if repair {
                self.discard(&path)?;
                self.db().execute("DELETE FROM blobs WHERE digest=?1", [digest.as_bytes()])?;
                self.db().execute("DELETE FROM packings WHERE digest=?1", [digest.as_bytes()])?;
            }
        }
        Ok(sound)
    }

    fn check_images(
        &self,
        sound: &BTreeSet<Digest>,
        repair: bool,
        problems: &mut Vec<Problem>,
    ) -> Result<(), StoreError> {
        for image in self.images()?.into_iter().filter(|image| !sound.contains(&image.target)) {
            problems.push(Problem { what: format!("the image `{}` has no manifest", image.name), repaired: repair });
            if repair {
                self.forget_image(&image.name)?;
            }
        }
        Ok(())
    }
}

/// Whether an error says something of this process, not of the file that it tried to read.
fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const OURS: [Errno; 6] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS, Errno::PERM, Errno::INTR];
    Errno::from_io_error(error).is_some_and(|errno| OURS.contains(&errno))
}

/// Bytes that a tree takes on disk; files with several names count once. What cannot be read counts as nothing.
fn disk_size(path: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut open = vec![path.to_owned()];
    let mut total = 0;
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.nlink() == 1 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            total += meta.blocks() * 512;
        }
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    total
}
