//! Names of images.
//!
//! An image is a manifest or index, kept as a blob, that a name points to. Layers are not: a manifest of an image that was
//! built here names its layers by diff ID, uncompressed, and the files are in the tree that `manifests` says.

use crate::store::now_ms;
use crate::{Store, StoreError, TreeId};
use rusqlite::{OptionalExtension, params};
use xbuild_oci::Digest;

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Full name with tag.
    pub name: String,
    /// Manifest or index.
    pub target: Digest,
    /// When the name was last given, in milliseconds since 1970.
    pub updated: i64,
}

impl Store {
    /// Says that the files of a manifest are those of `tree`.
    pub fn set_manifest_tree(&self, manifest: Digest, tree: TreeId) -> Result<(), StoreError> {
        self.db().execute("INSERT OR REPLACE INTO manifests VALUES (?1, ?2)", params![manifest.as_bytes(), tree.0])?;
        Ok(())
    }

    /// The files of a manifest, if they are unpacked.
    pub fn manifest_tree(&self, manifest: Digest) -> Result<Option<TreeId>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT tree FROM manifests WHERE digest=?1")?;
        let tree = query.query_row([manifest.as_bytes()], |row| row.get::<_, Option<i64>>(0)).optional()?;
        Ok(tree.flatten().map(TreeId))
    }

    /// Points names to an image, all at once.
    pub fn name_image(&self, names: &[String], target: Digest) -> Result<(), StoreError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for name in names {
            change.execute(
                "INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3)",
                params![name, target.as_bytes(), now_ms()],
            )?;
        }
        Ok(change.commit()?)
    }

    /// The image of a name.
    pub fn image(&self, name: &str) -> Result<Option<StoredImage>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT name, target, updated FROM images WHERE name=?1")?;
        Ok(query.query_row([name], read).optional()?)
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT name, target, updated FROM images ORDER BY updated DESC, name")?;
        let rows = query.query_map([], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes a name; whether it was there.
    pub fn forget_image(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.db().execute("DELETE FROM images WHERE name=?1", [name])? > 0)
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredImage> {
    Ok(StoredImage { name: row.get(0)?, target: Digest::from_bytes(row.get(1)?), updated: row.get(2)? })
}
