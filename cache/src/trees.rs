//! Rows of trees. A *tree* is a root filesystem: a list of layers, each an ordered list of diff directories.

use crate::store::now_ms;
use crate::tree::{self, Fill, Marks, View};
use crate::{At, Staging, Store, StoreError};
use rusqlite::{OptionalExtension, Row, params};
use std::fs;
use std::path::{Path, PathBuf};
use xbuild_oci::Digest;

/// Names a tree; [`TreeId::EMPTY`] has no files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeId(pub(crate) i64);

impl TreeId {
    /// The tree without files.
    pub const EMPTY: TreeId = TreeId(0);

    /// The number, for keeping elsewhere.
    pub fn number(self) -> i64 {
        self.0
    }
}

impl From<i64> for TreeId {
    fn from(number: i64) -> Self {
        Self(number)
    }
}

/// One layer and what it stands on.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its name.
    pub id: TreeId,
    /// The tree below.
    pub parent: TreeId,
    /// Diff directories of this layer alone, top first; none if the step changed nothing.
    pub dirs: Vec<PathBuf>,
    /// Marks in the diff directories.
    pub marks: Marks,
    /// A directory with this tree and all below it, if one was made.
    pub(crate) flat: Option<PathBuf>,
    /// Digest of the layer's tar, once made.
    pub diff_id: Option<Digest>,
    /// Bytes of the layer's tar, once made.
    pub tar_size: Option<u64>,
    /// Chain ID, once the diff IDs up to here are known.
    pub chain_id: Option<Digest>,
    /// Digest of what this layer changes, where it is known without reading it.
    pub changes: Option<[u8; 32]>,
    /// Digest of the changes and everything below, once computed.
    pub content: Option<[u8; 32]>,
    /// When it was made, in milliseconds since 1970.
    pub created: i64,
}

impl Tree {
    /// A name that no other tree of the store has or will have.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.id.0, self.created)
    }
}

/// What is known of a layer when it is published.
#[derive(Clone, Debug, Default)]
pub struct NewTree {
    /// The tree below; none for the bottom.
    pub parent: Option<TreeId>,
    /// Diff directories of another tree's layer, top first, to which the new one is the difference.
    pub reuse: Vec<PathBuf>,
    /// Diff ID, where the layer was unpacked from a tar.
    pub diff_id: Option<Digest>,
    /// Digest of what follows from the op and what it read, or is otherwise true of all layers with equal files.
    pub changes: Option<[u8; 32]>,
}

/// Longest list of directories that is given out. The kernel takes 500 lower directories in one overlay, but a look-up asks
/// each of them.
const MOST_DIRS: usize = 128;

const COLUMNS: &str = "id, parent, dirs, diff_id, chain_id, changes, content, created, flat, tar_size";

impl Store {
    /// Publishes the directory `fs` inside `staging` as a layer. With `None` the layer has no files.
    ///
    /// An equal chain that another process published meanwhile is taken instead.
    pub fn add_tree(&self, staging: Option<Staging>, new: &NewTree) -> Result<TreeId, StoreError> {
        let mut names = Vec::new();
        if let Some(staging) = staging {
            names.push(self.publish(staging)?);
        }
        names.extend(new.reuse.iter().filter_map(|dir| name_of(dir)).map(str::to_owned));
        let parent = new.parent.unwrap_or(TreeId::EMPTY);
        let below = match parent {
            TreeId::EMPTY => None,
            parent => self.tree(parent)?.chain_id,
        };
        let known = (parent == TreeId::EMPTY || below.is_some()).then_some(new.diff_id).flatten();
        let chain_id = known.map(|diff_id| Digest::chain(below, diff_id));
        let changes = new.changes.or_else(|| new.diff_id.map(changes_of_layer));
        let now = now_ms();
        let own = &names[..names.len() - new.reuse.len()];
        let discard_own = || own.iter().try_for_each(|name| self.discard(&self.root().join("trees").join(name)));
        let db = self.db();
        let inserted = db.execute(
            "INSERT OR IGNORE INTO trees (parent, dirs, chain_id, diff_id, changes, created, last_used, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)",
            params![parent.0, names.join(" "), bytes(chain_id), bytes(new.diff_id), changes, now, self.epoch()],
        );
        let inserted = inserted.inspect_err(|_| drop(discard_own()))?;
        let id = db.last_insert_rowid();
        drop(db);
        match chain_id {
            Some(chain_id) if inserted == 0 => {
                discard_own()?;
                self.tree_by_chain(chain_id)?.ok_or_else(|| StoreError::Missing(format!("the layer {chain_id}")))
            }
            _ => Ok(TreeId(id)),
        }
    }

    /// The newest trees that an op made, the newest first. They are marked as used and stay while this process lives.
    pub fn made_before(&self, op: &[u8; 32], most: u32) -> Result<Vec<TreeId>, StoreError> {
        let db = self.db();
        // What is collected in the same moment has no row to be marked any more.
        let mut query = db.prepare_cached(
            "UPDATE trees SET last_used=?2 WHERE id IN (SELECT tree FROM records WHERE op=?1 ORDER BY id DESC LIMIT ?3)
             RETURNING id",
        )?;
        let rows = query.query_map(params![op, now_ms(), most], |row| row.get(0).map(TreeId))?;
        let mut trees: Vec<TreeId> = rows.collect::<Result<_, _>>()?;
        trees.sort_unstable_by(|a, b| b.cmp(a));
        Ok(trees)
    }

    /// The row of a tree.
    pub fn tree(&self, id: TreeId) -> Result<Tree, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM trees WHERE id=?1"))?;
        let row = query.query_row([id.0], |row| self.read_tree(row)).optional()?;
        row.ok_or_else(|| StoreError::Missing(format!("the tree {}", id.0)))
    }

    /// All layers of a tree, the lowest first; empty for [`TreeId::EMPTY`].
    pub fn layers(&self, id: TreeId) -> Result<Vec<Tree>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!(
            "WITH RECURSIVE below(tree, depth) AS (VALUES (?1, 0)
               UNION ALL SELECT parent, depth+1 FROM below JOIN trees ON id=tree WHERE parent<>0)
             SELECT {COLUMNS} FROM below JOIN trees ON id=tree ORDER BY depth DESC"
        ))?;
        let layers: Vec<Tree> = query.query_map([id.0], |row| self.read_tree(row))?.collect::<Result<_, _>>()?;
        // Each layer stands on the one before it, the first on nothing, or one is gone.
        let mut below = TreeId::EMPTY;
        for layer in &layers {
            if layer.parent != below {
                return Err(StoreError::Missing(format!("the tree {}", layer.parent.0)));
            }
            below = layer.id;
        }
        if below == id { Ok(layers) } else { Err(StoreError::Missing(format!("the tree {}", id.0))) }
    }

    /// Directories that show a tree, top first, fit for an overlay: of a long chain of layers the lower part is one directory.
    pub fn dirs(&self, id: TreeId) -> Result<Vec<PathBuf>, StoreError> {
        self.dirs_within(id, MOST_DIRS)
    }

    fn dirs_within(&self, id: TreeId, most: usize) -> Result<Vec<PathBuf>, StoreError> {
        loop {
            let layers = self.layers(id)?;
            let lowest = layers.iter().rposition(|layer| layer.flat.is_some()).unwrap_or(0);
            let above = &layers[lowest.min(layers.len())..];
            let of = |layer: &Tree| layer.flat.clone().map_or_else(|| layer.dirs.clone(), |flat| vec![flat]);
            let count: usize = above.iter().map(|layer| of(layer).len()).sum();
            if count <= most {
                return Ok(above.iter().rev().flat_map(of).collect());
            }
            // The middle, so that steps that are changed near the top stand on the same directory.
            let middle = &above[above.len() / 2];
            let below: Vec<PathBuf> = above[..=above.len() / 2].iter().rev().flat_map(of).collect();
            self.flatten(middle.id, &below)?;
        }
    }

    /// Makes the one directory of a tree and all below it, unless another process has just done so.
    fn flatten(&self, id: TreeId, dirs: &[PathBuf]) -> Result<(), StoreError> {
        let lock = self.lock(&format!("flat-{}", id.0), &|| false)?;
        if self.tree(id)?.flat.is_some() {
            return Ok(());
        }
        let staging = self.staging()?;
        let to = staging.path().join("fs");
        fs::create_dir(&to).at("make", &to)?;
        let whole = View::layers(dirs, self.marks()).and_then(|view| tree::flatten(&view, &to, Fill::Link));
        whole.map_err(std::io::Error::other).at("put many layers into", &to)?;
        let name = self.publish(staging)?;
        // The files are new, so the tree is known to be on disk only after the next sync.
        self.db().execute("UPDATE trees SET flat=?2, epoch=?3 WHERE id=?1", params![id.0, name, self.epoch()])?;
        drop(lock);
        Ok(())
    }

    /// Moves a finished directory to `trees` and returns its name there.
    fn publish(&self, staging: Staging) -> Result<String, StoreError> {
        let name = self.new_name();
        let from = staging.into_path();
        fs::rename(&from, self.root().join("trees").join(&name)).at("publish", &from)?;
        Ok(name)
    }

    /// Finds a layer by its chain ID and marks it as used.
    pub fn tree_by_chain(&self, chain_id: Digest) -> Result<Option<TreeId>, StoreError> {
        let db = self.db();
        let mut query = db.prepare_cached("UPDATE trees SET last_used=?2 WHERE chain_id=?1 RETURNING id")?;
        Ok(query.query_row(params![chain_id.as_bytes(), now_ms()], |row| row.get(0).map(TreeId)).optional()?)
    }

    /// Remembers digest and size of a layer's tar, and the chain ID where it follows.
    pub fn set_tar(&self, id: TreeId, diff_id: Digest, size: u64) -> Result<(), StoreError> {
        let tree = self.tree(id)?;
        let below = match tree.parent {
            TreeId::EMPTY => None,
            parent => Some(self.tree(parent)?.chain_id),
        };
        let chain_id = match below {
            None => Some(Digest::chain(None, diff_id)),
            Some(below) => below.map(|b| Digest::chain(Some(b), diff_id)),
        };
        let db = self.db();
        // Another tree may have the same chain already: then this one stays without.
        let known = params![id.0, diff_id.as_bytes(), size as i64];
        db.execute("UPDATE trees SET diff_id=?2, tar_size=?3 WHERE id=?1", known)?;
        db.execute("UPDATE OR IGNORE trees SET chain_id=?2 WHERE id=?1", params![id.0, bytes(chain_id)])?;
        Ok(())
    }

    /// Remembers the content digest of a tree.
    pub fn set_content(&self, id: TreeId, content: [u8; 32]) -> Result<(), StoreError> {
        self.db().execute("UPDATE trees SET content=?2 WHERE id=?1", params![id.0, content])?;
        Ok(())
    }

    fn read_tree(&self, row: &Row<'_>) -> rusqlite::Result<Tree> {
        let dirs: String = row.get(2)?;
        let place = |name: &str| self.root().join("trees").join(name).join("fs");
        Ok(Tree {
            id: TreeId(row.get(0)?),
            parent: TreeId(row.get(1)?),
            dirs: dirs.split_ascii_whitespace().map(place).collect(),
            diff_id: row.get::<_, Option<[u8; 32]>>(3)?.map(Digest::from_bytes),
            chain_id: row.get::<_, Option<[u8; 32]>>(4)?.map(Digest::from_bytes),
            changes: row.get(5)?,
            content: row.get(6)?,
            created: row.get(7)?,
            marks: self.marks(),
            flat: row.get::<_, Option<String>>(8)?.map(|name| place(&name)),
            tar_size: row.get::<_, Option<i64>>(9)?.map(|size| size as u64),
        })
    }
}

/// Layers from elsewhere are equal if their tars are.
fn changes_of_layer(diff_id: Digest) -> [u8; 32] {
    *blake3::Hasher::new().update(b"xbuild/layer/v1").update(diff_id.as_bytes()).finalize().as_bytes()
}

/// The name of a directory in `trees/` whose `fs` is `dir`.
fn name_of(dir: &Path) -> Option<&str> {
    dir.parent()?.file_name()?.to_str()
}

fn bytes(digest: Option<Digest>) -> Option<[u8; 32]> {
    digest.map(|d| *d.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::NoDigests;

    /// A chain in which each layer writes one file, replaces one, and takes one away.
    fn chain(store: &Store, length: u32) -> Vec<TreeId> {
        let mut ids: Vec<TreeId> = Vec::new();
        for n in 0..length {
            let staging = store.staging().unwrap();
            let dir = staging.path().join("fs/d");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("own{n}")), n.to_string()).unwrap();
            fs::write(dir.join("all"), n.to_string()).unwrap();
            if n > 1 {
                let gone = dir.join(format!("own{}", n - 2));
                let device = rustix::fs::FileType::CharacterDevice;
                rustix::fs::mknodat(rustix::fs::CWD, &gone, device, rustix::fs::Mode::empty(), 0).unwrap();
            }
            let new = NewTree { parent: ids.last().copied(), ..NewTree::default() };
            ids.push(store.add_tree(Some(staging), &new).unwrap());
        }
        ids
    }

    #[test]
    fn long_chains_stand_on_one_directory() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped long_chains_stand_on_one_directory: needs root for whiteouts");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("root")).unwrap();
        let ids = chain(&store, 23);
        let digest = |dirs: &[PathBuf]| {
            View::layers(dirs, Marks::Trusted).and_then(|view| view.digest("/", false, &NoDigests)).unwrap()
        };
        for (n, id) in ids.iter().enumerate() {
            let all: Vec<PathBuf> = store.layers(*id).unwrap().into_iter().rev().flat_map(|t| t.dirs).collect();
            assert_eq!(all.len(), n + 1, "layers stay as they are");
            let dirs = store.dirs_within(*id, 4).unwrap();
            assert!(dirs.len() <= 4, "{}", dirs.len());
            assert_eq!(digest(&dirs), digest(&all), "after {n}");
        }
        let names = || fs::read_dir(store.root().join("trees")).unwrap().count();
        let made = names();
        assert!(made > 23 && made < 40, "{made}");
        for id in &ids {
            store.dirs_within(*id, 4).unwrap();
        }
        assert_eq!(names(), made, "what was made is used again");
        assert!(store.check(false).unwrap().is_empty());
        drop(store);
        let store = Store::open(&place.path().join("root")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        store.prune(&crate::PruneFilter { all: true, ..Default::default() }).unwrap();
        assert_eq!(fs::read_dir(store.root().join("trees")).unwrap().count(), 0, "they go with their trees");
    }
}
