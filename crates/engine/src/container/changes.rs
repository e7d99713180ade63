//! What a container has changed in its files.

use crate::{Engine, EngineError};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use xbuild_cache::TreeId;
use xbuild_cache::tree::View;
use xbuild_runner::container::Found;

impl Engine {
    /// Paths with `A`, `C` or `D`, in order; what lies in mounts is none of the container's own.
    pub fn changes(&self, found: &Found) -> Result<Vec<(char, PathBuf)>, EngineError> {
        overlaid(found)?;
        let lower = self.store().dirs(TreeId::from(found.container.tree))?;
        let below = View::layers(&lower, self.store().marks())?;
        let mut changes = Vec::new();
        walk(&below, &found.directory.join("fs"), Path::new("/"), &mut changes)?;
        changes.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(changes)
    }

    /// Bytes of the files of a tree with all that it stands on.
    pub fn tree_size(&self, tree: i64) -> Result<u64, EngineError> {
        let sizes = self.tree_sizes()?;
        let layers = self.store().layers(TreeId::from(tree))?;
        Ok(layers.iter().map(|layer| sizes.get(&layer.id).copied().unwrap_or(0)).sum())
    }
}

/// Changes are told apart from the image's files by the overlay that they lie in.
pub(super) fn overlaid(found: &Found) -> Result<(), EngineError> {
    match found.container.native {
        false => Ok(()),
        true => Err(EngineError::Source(format!(
            "the files of container {} are a copy of the image's (see XBUILD_SNAPSHOTTER): its changes are not known",
            found.container.name
        ))),
    }
}

fn walk(below: &View, directory: &Path, at: &Path, changes: &mut Vec<(char, PathBuf)>) -> Result<(), EngineError> {
    let opaque = is_opaque(directory);
    for entry in fs::read_dir(directory).map_err(|error| EngineError::io("read", directory, error))? {
        let entry = entry.map_err(|error| EngineError::io("read", directory, error))?;
        let (path, inside) = (entry.path(), at.join(entry.file_name()));
        let about = fs::symlink_metadata(&path).map_err(|error| EngineError::io("look at", &path, error))?;
        let was = below.lookup(&inside, false)?;
        if about.file_type().is_char_device() && about.rdev() == 0 {
            if was.is_some() {
                changes.push(('D', inside));
            }
            continue;
        }
        changes.push((if was.is_some() { 'C' } else { 'A' }, inside.clone()));
        if about.is_dir() {
            walk(below, &path, &inside, changes)?;
        }
    }
    if opaque && let Some(node) = below.lookup(at, false)?.filter(|node| node.meta.is_dir()) {
        for hidden in below.read_dir(&node)? {
            let inside = Path::new("/").join(&hidden.path);
            let name = inside.file_name().unwrap_or_default();
            if fs::symlink_metadata(directory.join(name)).is_err() {
                changes.push(('D', inside));
            }
        }
    }
    Ok(())
}

fn is_opaque(directory: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0; 4];
        rustix::fs::lgetxattr(directory, *name, &mut value).is_ok_and(|length| &value[..length] == b"y")
    })
}
