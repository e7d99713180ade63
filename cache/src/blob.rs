//! Blobs: exact bytes under their digest.

use crate::store::now_ms;
use crate::{At, Staging, Store, StoreError};
use rusqlite::{OptionalExtension, TransactionBehavior, params};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use xbuild_oci::{Digest, Sha256Writer};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// The tar as it is.
    Plain,
    /// gzip at a level.
    Gzip(i32),
    /// zstd at a level.
    Zstd(i32),
}

impl Packing {
    fn columns(self) -> (&'static str, i32) {
        match self {
            Self::Plain => ("uncompressed", 0),
            Self::Gzip(level) => ("gzip", level),
            Self::Zstd(level) => ("zstd", level),
        }
    }
}

/// A blob being written; dropped unfinished it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    store: &'a Store,
    staging: Staging,
    out: Sha256Writer<File>,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl BlobWriter<'_> {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.out.size()
    }

    /// Publishes the blob and returns its digest and size.
    ///
    /// # Errors
    /// [`StoreError::Digest`] if `expected` is given and another digest came out; then nothing is kept.
    pub fn finish(self, expected: Option<Digest>) -> Result<(Digest, u64), StoreError> {
        let (file, digest, size) = self.out.finish();
        if let Some(expected) = expected.filter(|e| *e != digest) {
            return Err(StoreError::Digest { what: "a blob".into(), found: digest, expected });
        }
        let from = self.staging.path().join("blob");
        let to = self.store.blob_path(digest);
        // Written through before it has its name: then a name never stands for other bytes.
        file.sync_data().at("sync", &from)?;
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).at("make", parent)?;
        }
        let mut db = self.store.db();
        // Name and row in one transaction: a collection that forgot an equal blob does not take this one away.
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        fs::rename(&from, &to).at("publish", &to)?;
        change.execute(
            "INSERT INTO blobs VALUES (?1, ?2, ?3, ?3, ?4) ON CONFLICT DO UPDATE SET last_used=?3",
            params![digest.as_bytes(), size as i64, now_ms(), self.store.epoch()],
        )?;
        change.commit()?;
        Ok((digest, size))
    }
}

impl Store {
    /// Starts a blob.
    pub fn write_blob(&self) -> Result<BlobWriter<'_>, StoreError> {
        let staging = self.staging()?;
        let path = staging.path().join("blob");
        let file = File::options().create_new(true).write(true).read(true).open(&path).at("make", &path)?;
        Ok(BlobWriter { store: self, staging, out: Sha256Writer::new(file) })
    }

    /// Stores a small blob.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has_blob(digest)?.is_some() {
            return Ok(digest);
        }
        let mut writer = self.write_blob()?;
        writer.write_all(bytes).at("write", &self.blob_path(digest))?;
        Ok(writer.finish(None)?.0)
    }

    /// The size of a blob if it is here; marks it as used.
    pub fn has_blob(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT size, last_used FROM blobs WHERE digest=?1")?;
        let found = query.query_row([digest.as_bytes()], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).optional()?;
        let Some((size, last_used)) = found else { return Ok(None) };
        if !self.is_safe(last_used) {
            // The row may have been collected in between; then the blob is not here.
            let mut mark = db.prepare_cached("UPDATE blobs SET last_used=?2 WHERE digest=?1")?;
            if mark.execute(params![digest.as_bytes(), now_ms()])? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(size as u64))
    }

    /// Where the bytes of a blob are, if it is here.
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.root().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// The bytes of a small blob, checked against its digest.
    pub fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        if self.has_blob(digest)?.is_none() {
            return Err(StoreError::Missing(format!("the blob {digest}")));
        }
        self.bytes_of(digest)
    }

    /// The same without marking it as used; `None` if it is not here, or damaged.
    pub(crate) fn sound_blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        match self.bytes_of(digest) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::Digest { .. }) => Ok(None),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn bytes_of(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).at("read", &path)?;
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(StoreError::Digest { what: "a blob of the store".into(), found, expected: digest }),
        }
    }

    /// A blob that holds the layer `diff_id` in this packing; marks it as used.
    pub fn packed(&self, diff_id: Digest, packing: Packing) -> Result<Option<(Digest, u64)>, StoreError> {
        let (compression, level) = packing.columns();
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT p.digest, p.size FROM packings p JOIN blobs b ON b.digest=p.digest
             WHERE p.diff_id=?1 AND p.compression=?2 AND (p.level=?3 OR p.level=-100) ORDER BY p.level DESC",
        )?;
        let read = |row: &rusqlite::Row<'_>| Ok((Digest::from_bytes(row.get(0)?), row.get::<_, i64>(1)? as u64));
        let found = query.query_row(params![diff_id.as_bytes(), compression, level], read).optional()?;
        drop(query);
        drop(db);
        match found {
            Some((digest, size)) => Ok(self.has_blob(digest)?.map(|_| (digest, size))),
            None => Ok(None),
        }
    }

    /// Every packing of a layer that is here, as (compression, digest, size), marked as used; foreign ones are those that were pulled.
    pub fn packings(&self, diff_id: Digest) -> Result<Vec<(String, Digest, u64)>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT compression, p.digest, p.size FROM packings p JOIN blobs b ON b.digest=p.digest WHERE p.diff_id=?1
             ORDER BY level",
        )?;
        let rows = query.query_map([diff_id.as_bytes()], |row| {
            Ok((row.get(0)?, Digest::from_bytes(row.get(1)?), row.get::<_, i64>(2)? as u64))
        })?;
        let found: Vec<(String, Digest, u64)> = rows.collect::<Result<_, _>>()?;
        drop(query);
        drop(db);
        let mut kept = Vec::with_capacity(found.len());
        for packing in found {
            if self.has_blob(packing.1)?.is_some() {
                kept.push(packing);
            }
        }
        Ok(kept)
    }

    /// Remembers that a blob holds the layer `diff_id`. A `level` of -100 says that others made it.
    pub fn remember_packing(
        &self,
        diff_id: Digest,
        packing: Packing,
        digest: Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        let (compression, level) = packing.columns();
        self.db().execute(
            "INSERT OR REPLACE INTO packings VALUES (?1, ?2, ?3, ?4, ?5)",
            params![diff_id.as_bytes(), compression, level, digest.as_bytes(), size as i64],
        )?;
        Ok(())
    }
}
