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

    /// Points names to an image, all at once. An image that loses its last name so stays, as one without a name.
    pub fn name_image(&self, names: &[String], target: Digest) -> Result<(), StoreError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        // A name is all that an image without one lacks.
        change.execute("DELETE FROM images WHERE name=?1", [unnamed(target)])?;
        for name in names {
            let before: Option<[u8; 32]> =
                change.query_row("SELECT target FROM images WHERE name=?1", [name], |row| row.get(0)).optional()?;
            if let Some(before) = before.map(Digest::from_bytes).filter(|before| *before != target) {
                let others = "SELECT 1 FROM images WHERE target=?1 AND name<>?2 LIMIT 1";
                if !change.prepare_cached(others)?.exists(params![before.as_bytes(), name])? {
                    let row = params![unnamed(before), before.as_bytes(), now_ms()];
                    change.execute("INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3)", row)?;
                }
            }
            change.execute(
                "INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3)",
                params![name, target.as_bytes(), now_ms()],
            )?;
        }
        Ok(change.commit()?)
    }

    /// Keeps an image that has no name, until it is removed.
    pub fn keep_unnamed(&self, target: Digest) -> Result<(), StoreError> {
        let db = self.db();
        let named = db.prepare_cached("SELECT 1 FROM images WHERE target=?1 LIMIT 1")?.exists([target.as_bytes()])?;
        if !named {
            let row = params![unnamed(target), target.as_bytes(), now_ms()];
            db.execute("INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3)", row)?;
        }
        Ok(())
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

impl StoredImage {
    /// Whether it has a name that people gave it.
    pub fn is_named(&self) -> bool {
        !self.name.starts_with('@')
    }
}

/// The entry of an image without a name; no name can begin so.
fn unnamed(target: Digest) -> String {
    format!("@{target}")
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredImage> {
    Ok(StoredImage { name: row.get(0)?, target: Digest::from_bytes(row.get(1)?), updated: row.get(2)? })
}
