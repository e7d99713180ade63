//! The store: everything that outlives a build.
//!
//! ```text
//! ROOT/                  mode 0700
//!   FORMAT               version of everything below; another one is refused
//!   index.db             SQLite (WAL): trees, records, keys, blobs, images, remote files
//!   blobs/sha256/ab/…    exact bytes of layers, configurations, manifests; immutable
//!   trees/NAME/fs        one overlay diff directory each; immutable once its row is there
//!   cachemounts/NAME     type=cache mounts
//!   staging/OWNER/…      being written; swept when the owner is gone
//!   trash/…              renamed away, freed later
//!   contexts/…           stat indexes of local contexts
//!   builds/ID            logs
//!   locks/…              session-*: one per live process; step-*, mount-*: run-once and mount locks
//! ```
//!
//! # Invariants
//! - A tree or blob is written in `staging`, renamed to its final name, and then gets its row. A crash leaves at most an
//!   unnamed directory, never a row without files.
//! - A row whose bytes are not known to be on disk carries the store's *epoch* (boot and mount); a store opened in another
//!   epoch drops such rows. [`Store::sync`] makes everything durable.
//! - A process that uses the store holds a session lock whose file says when it began. Collection never removes what was made
//!   or used since the oldest live session began, nor what such a thing stands on.
//! - Several processes share one root: SQLite serialises index changes, renames publish files.

mod blob;
mod gc;
mod image;
mod index;
mod lease;
mod lock;
mod orphans;
mod record;
mod store;
mod trash;
pub mod tree;
mod trees;

pub use blob::{BlobWriter, Packing};
pub use gc::{PruneFilter, Pruned, Usage, UsageKind};
pub use image::StoredImage;
pub use lease::Lease;
pub use lock::FileLock;
pub use record::{NewRecord, Record, RemoteFile};
pub use store::{Problem, Staging, Store};
pub use trees::{NewTree, Tree, TreeId};

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The index failed.
    #[error("the store's index failed")]
    Index(#[source] rusqlite::Error),
    /// The index has no room to grow.
    #[error("the store's index cannot grow")]
    Full(#[source] io::Error),
    /// The root was made by another version.
    #[error("the store at `{}` has format {found}, this xbuild reads {expected}", root.display())]
    Format {
        /// The store's root.
        root: PathBuf,
        /// What `FORMAT` says.
        found: String,
        /// What this program writes.
        expected: &'static str,
    },
    /// The root is another user's.
    #[error("the store at `{}` belongs to another user (uid {owner}); choose another one with --root", root.display())]
    Foreign {
        /// The store's root.
        root: PathBuf,
        /// Who it belongs to, as seen from here.
        owner: u32,
    },
    /// Bytes do not have the digest or size that was promised.
    #[error("{what} has digest {found}, expected {expected}")]
    Digest {
        /// Which content.
        what: String,
        /// What was computed.
        found: xbuild_oci::Digest,
        /// What was promised.
        expected: xbuild_oci::Digest,
    },
    /// Something named is not in the store.
    #[error("{0} is not in the store")]
    Missing(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full(rustix::io::Errno::NOSPC.into()),
            _ => Self::Index(error),
        }
    }
}

/// Adds action and path to an I/O result.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::Io { action, path: path.to_owned(), source: e.into() })
    }
}
