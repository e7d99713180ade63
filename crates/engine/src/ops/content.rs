//! Content digests of whole trees, layer by layer.

use crate::EngineError;
use std::io::{self, Write};
use xbuild_cache::tree::{self, Marks, TarOptions};
use xbuild_cache::{Store, TreeId};

/// Digest of what a tree holds, whatever made it: changes of its top layer and the digest of what is below. Times do not
/// count. Remembered in the index.
pub(crate) fn of_tree(store: &Store, id: TreeId) -> Result<[u8; 32], EngineError> {
    let mut below = [0; 32];
    if id == TreeId::EMPTY {
        return Ok(below);
    }
    for layer in store.layers(id)? {
        below = match (layer.content, layer.chain_id) {
            (Some(content), _) => content,
            (None, _) => {
                let mut hash = Blake(blake3::Hasher::new());
                hash.0.update(b"xbuild/tree/v1").update(&below);
                tree::write_layer(&layer.dirs, Marks::Trusted, TarOptions { clamp: Some(i64::MIN) }, &mut hash)?;
                let content = *hash.0.finalize().as_bytes();
                store.set_content(layer.id, content)?;
                content
            }
        };
    }
    Ok(below)
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
