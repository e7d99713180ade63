//! What containers hold.
//!
//! A container's directory has a file `lease` with its tree and its manifest, one a line. It appears and goes with the
//! directory, so what it holds needs no index: collection reads the files.

use crate::{At, Store, StoreError, TreeId};
use std::fs;
use std::io::ErrorKind;
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

    /// `None` if there is none, or none that a container was made with.
    fn read(directory: &Path) -> Result<Option<Lease>, StoreError> {
        let path = directory.join("lease");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // What is no directory is no container.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).at("read", &path),
        };
        Ok(Lease::parse(&text))
    }

    fn parse(text: &str) -> Option<Lease> {
        let (tree, manifest) = text.split_once('\n')?;
        Some(Lease { tree: TreeId::from(tree.parse::<i64>().ok()?), manifest: manifest.trim().parse().ok()? })
    }
}

impl Store {
    /// What containers hold; a container that is being removed counts or not. An error means that nothing may be collected.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let containers = self.root().join("containers");
        let entries = match fs::read_dir(&containers) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &containers)?,
        };
        let leases = entries.map(|entry| Lease::read(&entry.at("read", &containers)?.path()));
        leases.filter_map(Result::transpose).collect()
    }
}
