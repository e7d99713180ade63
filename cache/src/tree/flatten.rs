//! Whole trees in one directory.

use super::copy::{CopyOptions, CopySource};
use super::dir::Marks;
use super::error::{Context, Result};
use super::view::View;
use super::writer::{DiffWriter, Ids, set_file};
use std::path::Path;

/// How the files of a tree get into a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// As further names of the files of the store, where they can be. For directories in which nothing is changed.
    Link,
    /// As copies, with shared blocks where the file system can. Names of one file become files of their own, as they do in an
    /// overlay when one of them is changed.
    Copy,
}

/// Puts everything that a view of the store shows into the empty directory `to`, with all attributes and times.
pub fn flatten(view: &View, to: &Path, fill: Fill) -> Result<()> {
    let mut writer = match fill {
        Fill::Link => DiffWriter::new(to, &View::layers::<&Path>(&[], Marks::Plain)?, Marks::Plain)?,
        Fill::Copy => DiffWriter::onto(to)?,
    };
    writer.separate = fill == Fill::Copy;
    let root = Path::new("/");
    let source = CopySource::Path { view, path: root, wildcard: false, required: true };
    let Some(node) = view.lookup(root, false)? else { return Ok(()) };
    writer.copy(&[source], &CopyOptions::faithful(root))?;
    let owner = Ids { uid: node.meta.uid, gid: node.meta.gid };
    set_file(writer.diff_root(), node.meta.mode, owner, None).context("set attributes of", root)?;
    writer.finish()
}
