//! Records of finished steps, and of remote files.

use crate::store::now_ms;
use crate::{Store, StoreError, TreeId};
use rusqlite::{OptionalExtension, params};
use xbuild_oci::Digest;

/// A finished step.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: i64,
    /// What it made.
    pub tree: TreeId,
    /// What its result key is made of, as the engine wrote it.
    pub inputs: String,
    /// The result key, once computed.
    pub result_key: Option<[u8; 32]>,
}

/// A step to record.
#[derive(Clone, Debug)]
pub struct NewRecord<'a> {
    /// Definition key.
    pub key: [u8; 32],
    /// Digest of the op alone.
    pub op: [u8; 32],
    /// Result key, where it was computed.
    pub result_key: Option<[u8; 32]>,
    /// What a result key can be made of later.
    pub inputs: &'a str,
    /// What it made.
    pub tree: TreeId,
    /// For people.
    pub description: &'a str,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// A file that was downloaded.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub modified: Option<String>,
    /// Name from `Content-Disposition`.
    pub name: Option<String>,
    /// The content, a blob of this store.
    pub digest: Digest,
}

impl Store {
    /// The record under a definition key; marks it as used, so that it is safe from collection while this process lives.
    pub fn find_record(&self, key: &[u8; 32]) -> Result<Option<Record>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT records.id, tree, inputs, result_key FROM keys JOIN records ON keys.record=records.id WHERE key=?1",
        )?;
        let found = query.query_row([key], read).optional()?;
        drop(query);
        let Some(record) = found else { return Ok(None) };
        // The row may have been collected in between; then it is no hit.
        let used = db
            .prepare_cached("UPDATE records SET last_used=?2, uses=uses+1 WHERE id=?1")?
            .execute(params![record.id, now_ms()])?;
        Ok((used == 1).then_some(record))
    }

    /// What the record under a definition key made, and when (milliseconds since 1970); marks it as used.
    pub fn find_made(&self, key: &[u8; 32]) -> Result<Option<(TreeId, i64)>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "UPDATE records SET last_used=?2 WHERE id=(SELECT record FROM keys WHERE key=?1) RETURNING tree, created",
        )?;
        Ok(query.query_row(params![key, now_ms()], |row| Ok((TreeId(row.get(0)?), row.get(1)?))).optional()?)
    }

    /// The record under a result key, marked as used.
    pub fn find_result(&self, result_key: &[u8; 32]) -> Result<Option<Record>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "UPDATE records SET last_used=?2, uses=uses+1 WHERE id=(SELECT id FROM records WHERE result_key=?1
             ORDER BY id DESC LIMIT 1) RETURNING id, tree, inputs, result_key",
        )?;
        Ok(query.query_row(params![result_key, now_ms()], read).optional()?)
    }

    /// Records of the same op whose result key was not computed yet, the newest first.
    pub fn records_without_result_key(&self, op: &[u8; 32], most: u32) -> Result<Vec<Record>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT id, tree, inputs, result_key FROM records WHERE op=?1 AND result_key IS NULL ORDER BY id DESC LIMIT ?2",
        )?;
        let rows = query.query_map(params![op, most], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether the op was ever recorded.
    pub fn knows_op(&self, op: &[u8; 32]) -> Result<bool, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT 1 FROM records WHERE op=?1 LIMIT 1")?;
        Ok(query.exists([op])?)
    }

    /// Remembers the result key of a record.
    pub fn set_result_key(&self, record: i64, result_key: &[u8; 32]) -> Result<(), StoreError> {
        self.db().execute("UPDATE records SET result_key=?2 WHERE id=?1", params![record, result_key])?;
        Ok(())
    }

    /// Lets `key` find `record`, too.
    pub fn alias(&self, key: &[u8; 32], record: i64) -> Result<(), StoreError> {
        self.db().execute("INSERT OR REPLACE INTO keys VALUES (?1, ?2)", params![key, record])?;
        Ok(())
    }

    /// Records a step under its key, in place of an older one.
    pub fn add_record(&self, new: &NewRecord<'_>) -> Result<i64, StoreError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let id = {
            let mut insert = change.prepare_cached(
                "INSERT INTO records (op, tree, inputs, result_key, description, duration_ms, created, last_used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
            )?;
            let duration = i64::try_from(new.duration_ms).unwrap_or(i64::MAX);
            insert.insert(params![
                new.op,
                new.tree.0,
                new.inputs,
                new.result_key,
                new.description,
                duration,
                now_ms()
            ])?
        };
        change.prepare_cached("INSERT OR REPLACE INTO keys VALUES (?1, ?2)")?.execute(params![new.key, id])?;
        change.commit()?;
        Ok(id)
    }

    /// What is known of a remote file.
    pub fn remote_file(&self, url: &str) -> Result<Option<RemoteFile>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT etag, modified, name, r.digest FROM remote_files r JOIN blobs b ON b.digest=r.digest WHERE url=?1",
        )?;
        let read = |row: &rusqlite::Row<'_>| {
            let digest = Digest::from_bytes(row.get(3)?);
            Ok(RemoteFile { etag: row.get(0)?, modified: row.get(1)?, name: row.get(2)?, digest })
        };
        Ok(query.query_row([url], read).optional()?)
    }

    /// Remembers a remote file.
    pub fn set_remote_file(&self, url: &str, file: &RemoteFile) -> Result<(), StoreError> {
        self.db().execute(
            "INSERT OR REPLACE INTO remote_files VALUES (?1, ?2, ?3, ?4, ?5)",
            params![url, file.etag, file.modified, file.name, file.digest.as_bytes()],
        )?;
        Ok(())
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record { id: row.get(0)?, tree: TreeId(row.get(1)?), inputs: row.get(2)?, result_key: row.get(3)? })
}
