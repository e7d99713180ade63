//! Results → images → outputs.
//!
//! Three steps, each a module: [`layers`] turns trees into layer descriptors (tar, diff ID, packing, each made at most once);
//! [`image`] assembles configuration, manifest and index; [`archive`] writes them as an OCI layout or docker archive, in a
//! directory or a tar. Output bytes depend on the input only, never on thread counts or the clock.

pub mod archive;
mod error;
pub mod image;
pub mod layers;
mod pack;

pub use error::ExportError;
pub use pack::PackWriter;

use std::path::PathBuf;
use xbuild_cache::TreeId;
use xbuild_oci::{Descriptor, Digest};

/// Where the bytes of a descriptor are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// A file, named by its digest in the store.
    File(PathBuf),
    /// The tar of a tree's topmost layer, made while it is written; times after `clamp` seconds become `clamp`.
    Layer {
        /// The tree.
        tree: TreeId,
        /// Latest time.
        clamp: Option<i64>,
    },
}

/// A descriptor with its bytes.
#[derive(Clone, Debug)]
pub struct Item {
    /// Type, digest, size.
    pub descriptor: Descriptor,
    /// The bytes.
    pub content: Content,
}

impl Item {
    /// An item of bytes in memory.
    pub fn of(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { descriptor: Descriptor::of(media_type, &bytes), content: Content::Bytes(bytes) }
    }

    /// The digest.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }
}
