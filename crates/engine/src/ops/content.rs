//! Content digests of whole trees, layer by layer.

use crate::EngineError;
use std::io::{self, Write};
use xbuild_cache::tree::{self, TarOptions};
use xbuild_cache::{Store, Tree, TreeId};

/// Digest of what a tree holds: changes of its top layer and the digest of what is below. Times do not count. Remembered in
/// the index.
pub(crate) fn of_tree(store: &Store, id: TreeId) -> Result<[u8; 32], EngineError> {
    let mut below = [0; 32];
    if id == TreeId::EMPTY {
        return Ok(below);
    }
    for layer in store.layers(id)? {
        below = match layer.content {
            Some(content) => content,
            None => {
                let mut hash = blake3::Hasher::new();
                hash.update(b"xbuild/tree/v2").update(&below).update(&changes(&layer)?);
                let content = *hash.finalize().as_bytes();
                store.set_content(layer.id, content)?;
                content
            }
        };
    }
    Ok(below)
}

/// Digest of what one layer changes. Most are known: of a base image's layers from their diff IDs, of copies from what they
/// read. Those of RUN are hashed.
fn changes(layer: &Tree) -> Result<[u8; 32], EngineError> {
    if let Some(changes) = layer.changes {
        return Ok(changes);
    }
    let mut hash = Blake(blake3::Hasher::new());
    tree::write_layer(&layer.dirs, layer.marks, TarOptions { clamp: Some(i64::MIN) }, &mut hash)?;
    Ok(*hash.0.finalize().as_bytes())
}

struct Blake(blake3::Hasher);

impl Write for Blake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
