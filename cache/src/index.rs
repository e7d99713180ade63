//! The SQLite index: schema and connection settings.

use crate::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use std::path::Path;
use std::time::{Duration, Instant};

/// `user_version` of the schema below.
const VERSION: i64 = 1 + UPGRADES.len() as i64;

const SCHEMA: &str = "
CREATE TABLE trees (
  id INTEGER PRIMARY KEY,
  parent INTEGER,                 -- the tree below; null at the bottom
  dirs TEXT NOT NULL,             -- names in trees/, top first, space separated; empty for no change
  flat TEXT,                      -- name in trees/ of a directory with this tree and all below, if one was made
  chain_id BLOB UNIQUE,           -- OCI chain ID, once known
  diff_id BLOB,                   -- OCI diff ID of this layer, once known
  tar_size INTEGER,               -- bytes of the tar with that digest, once made
  changes BLOB,                   -- digest of what this layer changes, where it is known without reading it
  content BLOB,                   -- digest of the changes and of what is below, once known
  size INTEGER,                   -- bytes on disk, once counted
  created INTEGER NOT NULL,       -- milliseconds since the epoch
  last_used INTEGER NOT NULL,
  epoch TEXT                      -- null when known to be on disk
);
CREATE INDEX trees_parent ON trees(parent);
CREATE TABLE records (
  id INTEGER PRIMARY KEY,
  op BLOB NOT NULL,
  tree INTEGER NOT NULL,
  inputs TEXT NOT NULL,           -- what the result key is made of, as the engine writes it
  result_key BLOB,
  description TEXT NOT NULL,
  duration_ms INTEGER NOT NULL,
  created INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX records_op ON records(op);
CREATE INDEX records_result ON records(result_key);
CREATE INDEX records_tree ON records(tree);
CREATE TABLE keys (key BLOB PRIMARY KEY, record INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_record ON keys(record);
CREATE TABLE blobs (
  digest BLOB PRIMARY KEY,
  size INTEGER NOT NULL,
  created INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  epoch TEXT
) WITHOUT ROWID;
CREATE TABLE packings (diff_id BLOB, compression TEXT, level INTEGER, digest BLOB NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (diff_id, compression, level)) WITHOUT ROWID;
CREATE TABLE manifests (digest BLOB PRIMARY KEY, tree INTEGER) WITHOUT ROWID;
CREATE TABLE images (name TEXT PRIMARY KEY, target BLOB NOT NULL, updated INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE remote_files (url TEXT PRIMARY KEY, etag TEXT, modified TEXT, name TEXT, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// What makes the next version of each one, from 1 on.
const UPGRADES: [&str; 3] = [
    // Digests of contents are made of other things since.
    "ALTER TABLE trees ADD COLUMN changes BLOB; UPDATE trees SET content=NULL; UPDATE records SET result_key=NULL;",
    "ALTER TABLE trees ADD COLUMN flat TEXT;",
    "ALTER TABLE trees ADD COLUMN tar_size INTEGER;",
];

/// How long other processes are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the index, makes its tables if it is new, and drops rows of another epoch.
pub(crate) fn open(path: &Path, epoch: &str) -> Result<Connection, StoreError> {
    let mut db = Connection::open(path)?;
    db.busy_timeout(PATIENCE)?;
    write_ahead(&db)?;
    db.execute_batch(
        "PRAGMA synchronous=NORMAL; PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY;
         PRAGMA wal_autocheckpoint=200;",
    )?;
    // The last process would sync four times when it ends. The log stays instead; it is short, so opening takes it in soon.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.set_prepared_statement_cache_capacity(64);
    if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? != VERSION {
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        match change.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            0 => change.execute_batch(SCHEMA)?,
            newer if newer > VERSION => {
                let found = format!("with an index of version {newer}");
                let root = path.parent().unwrap_or(path).to_owned();
                return Err(StoreError::Format { root, found, expected: "older ones" });
            }
            old => {
                let done = usize::try_from(old - 1).unwrap_or(0);
                UPGRADES.iter().skip(done).try_for_each(|upgrade| change.execute_batch(upgrade))?;
            }
        }
        change.pragma_update(None, "user_version", VERSION)?;
        change.commit()?;
    }
    let known = "SELECT value FROM facts WHERE name='epoch'";
    let stored: Option<String> = db.query_row(known, [], |row| row.get(0)).optional()?;
    if stored.as_deref() != Some(epoch) {
        drop_other_epochs(&mut db, epoch)?;
    }
    Ok(db)
}

/// A log that is read in no time when the index is opened, in bytes.
const SHORT_LOG: u64 = 128 << 10;

/// Whether opening the index takes long because of its log, all of which is read first if nobody has the index open.
pub(crate) fn has_long_log(path: &Path) -> bool {
    std::fs::metadata(path.with_extension("db-wal")).is_ok_and(|log| log.len() > SHORT_LOG)
}

/// Moves what is logged into the index. Others may go on meanwhile, and then some of it may stay for the next time.
pub(crate) fn shorten_log(db: &Connection) -> rusqlite::Result<()> {
    // What takes time first, which hinders nobody; then the rest and the cut, for which writers wait.
    for how in ["PASSIVE", "TRUNCATE"] {
        db.busy_timeout(Duration::from_millis(50))?;
        let done = db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()));
        db.busy_timeout(PATIENCE)?;
        match done {
            Err(error) if is_busy(&error) => return Ok(()),
            done => done?,
        }
    }
    Ok(())
}

/// Has changes logged before they are made. A new index becomes such a one by a lock that SQLite does not wait for,
/// whatever the timeout, and processes that come first come together.
fn write_ahead(db: &Connection) -> rusqlite::Result<()> {
    let start = Instant::now();
    loop {
        match db.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if is_busy(&error) && start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            done => return done,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// What an earlier boot or mount did not sync may be gone: forget it, and everything that stands on it.
fn drop_other_epochs(db: &mut Connection, epoch: &str) -> Result<(), StoreError> {
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    change.execute("DELETE FROM blobs WHERE epoch IS NOT NULL AND epoch<>?1", [epoch])?;
    change.execute("DELETE FROM packings WHERE digest NOT IN (SELECT digest FROM blobs)", [])?;
    change.execute(
        "WITH RECURSIVE lost(id) AS (SELECT id FROM trees WHERE epoch IS NOT NULL AND epoch<>?1
           UNION SELECT trees.id FROM trees JOIN lost ON trees.parent=lost.id)
         DELETE FROM trees WHERE id IN lost",
        [epoch],
    )?;
    change.execute("DELETE FROM records WHERE tree<>0 AND tree NOT IN (SELECT id FROM trees)", [])?;
    change.execute("DELETE FROM keys WHERE record NOT IN (SELECT id FROM records)", [])?;
    change.execute("INSERT OR REPLACE INTO facts VALUES ('epoch', ?1)", [epoch])?;
    Ok(change.commit()?)
}
