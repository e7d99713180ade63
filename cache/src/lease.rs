//! What containers hold.
//!
//! A container's directory has a file `lease` with its tree and its manifest, one a line. It appears and goes with the
//! directory, so what it holds needs no index: collection reads the files.

use crate::{At, Store, StoreError, TreeId};
use std::fs;
use std::path::Path;
use xbuild_oci::Digest;

/// What one container holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The files of its image.
    pub tree: TreeId,
    /// Its image.
    pub manifest: Digest,
}

impl Lease {
    /// Writes the lease into a container's directory.
    pub fn write(&self, directory: &Path) -> Result<(), StoreError> {
        let path = directory.join("lease");
        fs::write(&path, format!("{}\n{}\n", self.tree.number(), self.manifest)).at("write", &path)
    }

    fn read(directory: &Path) -> Option<Lease> {
        let text = fs::read_to_string(directory.join("lease")).ok()?;
        let (tree, manifest) = text.split_once('\n')?;
        Some(Lease { tree: TreeId::from(tree.parse::<i64>().ok()?), manifest: manifest.trim().parse().ok()? })
    }
}

impl Store {
    /// What containers hold; a container that is being removed counts or not.
    pub fn leases(&self) -> Vec<Lease> {
        let entries = fs::read_dir(self.root().join("containers")).into_iter().flatten().flatten();
        entries.filter_map(|entry| Lease::read(&entry.path())).collect()
    }
}
