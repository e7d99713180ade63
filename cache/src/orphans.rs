//! What processes left that died between a rename and its row.
//!
//! A directory of `trees/` has the session that made it in its name, so it is known to belong to nobody when that session has
//! ended and no row has it. Blobs are named by their bytes; a blob without a row is an orphan if it got its name well before
//! every session that lives began.

use crate::store::now_ms;
use crate::{At, Store, StoreError};
use rusqlite::TransactionBehavior;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use xbuild_oci::Digest;

/// How much a file system's clock may be behind ours, in milliseconds.
const CLOCKS: i64 = 1000;

impl Store {
    /// Throws away what belongs to nothing because its maker died.
    pub(crate) fn discard_orphans(&self) -> Result<(), StoreError> {
        self.discard_orphaned_trees()?;
        self.discard_orphaned_blobs()
    }

    fn discard_orphaned_trees(&self) -> Result<(), StoreError> {
        let trees = self.root().join("trees");
        let mut live = BTreeMap::new();
        let mut ended = Vec::new();
        for entry in entries(&trees)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((owner, _)) = name.rsplit_once('-') else { continue };
            let lives = match live.get(owner) {
                Some(lives) => *lives,
                None => *live.entry(owner.to_owned()).or_insert(self.session_is_live(owner)?),
            };
            if !lives {
                ended.push(name);
            }
        }
        if ended.is_empty() {
            return Ok(());
        }
        // Read after the sessions ended, so that what they did is all there.
        let named = self.named_directories()?;
        ended.iter().filter(|name| !named.contains(*name)).try_for_each(|name| self.discard(&trees.join(name)))
    }

    /// Names in `trees/` that a row has.
    pub(crate) fn named_directories(&self) -> Result<BTreeSet<String>, StoreError> {
        let db = self.db();
        let mut query = db.prepare("SELECT dirs || ' ' || coalesce(flat, '') FROM trees")?;
        let rows: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(rows.iter().flat_map(|row| row.split_ascii_whitespace()).map(str::to_owned).collect())
    }

    fn discard_orphaned_blobs(&self) -> Result<(), StoreError> {
        let before = self.oldest_session(false)?.min(now_ms()) - CLOCKS;
        let rows: BTreeSet<Digest> = {
            let db = self.db();
            let mut query = db.prepare("SELECT digest FROM blobs")?;
            query.query_map([], |row| row.get(0).map(Digest::from_bytes))?.collect::<Result<_, _>>()?
        };
        let mut orphans = Vec::new();
        for folder in entries(&self.root().join("blobs/sha256"))? {
            for entry in entries(&folder.path())? {
                let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
                let named_at = |meta: fs::Metadata| meta.ctime() * 1000 + meta.ctime_nsec() / 1_000_000;
                if let Some(digest) = digest.filter(|digest| !rows.contains(digest))
                    && entry.metadata().is_ok_and(|meta| named_at(meta) < before)
                {
                    orphans.push(digest);
                }
            }
        }
        self.discard_blobs(&orphans)
    }

    /// Throws away the bytes of blobs that have no row. One that was made again meanwhile stays.
    pub(crate) fn discard_blobs(&self, digests: &[Digest]) -> Result<(), StoreError> {
        if digests.is_empty() {
            return Ok(());
        }
        let mut db = self.db();
        // Keeps others from publishing, which they do in such a transaction, too.
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for digest in digests {
            let row = change.prepare_cached("SELECT 1 FROM blobs WHERE digest=?1")?.exists([digest.as_bytes()])?;
            if !row {
                self.discard(&self.blob_path(*digest))?;
            }
        }
        Ok(change.commit()?)
    }
}

fn entries(dir: &Path) -> Result<Vec<DirEntry>, StoreError> {
    Ok(fs::read_dir(dir).at("read", dir)?.flatten().collect())
}
