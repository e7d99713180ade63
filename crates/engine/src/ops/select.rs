//! What an op reads of its inputs, and the digests of just that.

use super::delta;
use super::file::{copy_options, visibility};
use crate::EngineError;
use crate::worker::BuildWorker;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use xbuild_cache::tree::{
    self, CopyOptions, CopySource as TreeSource, DiffWriter, FileDigests, Listing, NoDigests, View,
};
use xbuild_cache::{NewTree, Store, TreeId};
use xbuild_frontend::ignore;
use xbuild_graph::{CopyAction, CopySource, FileAction, FileOp, Op};

/// Whether the op reads only some paths of input `n`, so that their digest tells more than the whole input's.
pub(crate) fn is_selective(op: &Op, n: usize) -> bool {
    match op {
        Op::File(file) => file.base != Some(n),
        Op::Exec(exec) => {
            exec.mounts.iter().skip(1).any(|m| m.input == Some(n))
                && exec.mounts.first().is_none_or(|m| m.input != Some(n))
        }
        _ => false,
    }
}

/// Digest of what an op reads of an input that is a tree of the store.
pub(crate) fn digest_of_tree(store: &Store, op: &Op, n: usize, tree: TreeId) -> Result<[u8; 32], EngineError> {
    let view = View::layers(&store.dirs(tree)?, store.marks())?;
    digest(op, n, &view, &NoDigests)
}

/// Digest of what an op reads of a local directory; file digests are remembered between builds.
/// Of what is copied there may be a listing, too.
pub(crate) fn digest_of_context(
    worker: &BuildWorker,
    op: &Op,
    n: usize,
    name: &str,
) -> Result<([u8; 32], Option<Listing>), EngineError> {
    let view = context_view(worker, name)?;
    let index = worker.stat_index(name)?;
    match delta::listable(op, n) {
        Some(copy) => {
            let (digest, listing) = delta::list(worker, copy, name, &view, &*index)?;
            Ok((of_copies(&[digest]), listing))
        }
        None => Ok((digest(op, n, &view, &*index)?, None)),
    }
}

/// The digest of an op that only copies.
fn of_copies(copies: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = start();
    for copy in copies {
        hash.update(copy);
    }
    *hash.finalize().as_bytes()
}

fn start() -> blake3::Hasher {
    let mut hash = blake3::Hasher::new();
    hash.update(b"xbuild/selection/v1");
    hash
}

fn digest(op: &Op, n: usize, view: &View, files: &dyn FileDigests) -> Result<[u8; 32], EngineError> {
    let mut hash = start();
    match op {
        Op::File(file) => digest_file_op(file, n, view, files, &mut hash)?,
        Op::Exec(exec) => {
            for mount in exec.mounts.iter().filter(|m| m.input == Some(n)) {
                let path = if mount.selector.is_empty() { "/" } else { &mount.selector };
                hash.update(mount.destination.as_bytes()).update(&view.digest(path, true, files)?);
            }
        }
        _ => {
            hash.update(&view.digest("/", true, files)?);
        }
    }
    Ok(*hash.finalize().as_bytes())
}

fn digest_file_op(
    op: &FileOp,
    n: usize,
    view: &View,
    files: &dyn FileDigests,
    hash: &mut blake3::Hasher,
) -> Result<(), EngineError> {
    if op.base == Some(n) {
        hash.update(&view.digest("/", true, files)?);
    }
    for action in &op.actions {
        let FileAction::Copy(copy) = action else {
            continue;
        };
        hash.update(&digest_copy(copy, n, view, files)?);
    }
    Ok(())
}

fn digest_copy(copy: &CopyAction, n: usize, view: &View, files: &dyn FileDigests) -> Result<[u8; 32], EngineError> {
    copy_options(copy, None, |options| {
        let of = |source: &'_ CopySource| match source {
            CopySource::Path { path, wildcard, required } if copy.input == n => {
                Some((path.clone(), *wildcard, *required))
            }
            CopySource::Input { input, .. } if *input == n => Some(("/".to_owned(), false, true)),
            _ => None,
        };
        let wanted: Vec<_> = copy.sources.iter().filter_map(of).collect();
        let sources: Vec<TreeSource<'_>> = wanted
            .iter()
            .map(|(path, wildcard, required)| TreeSource::Path {
                view,
                path: Path::new(path),
                wildcard: *wildcard,
                required: *required,
            })
            .collect();
        Ok(tree::selection_digest(&sources, options, files)?)
    })
}

/// A view of a local directory without what its ignore rules hide; opened once.
pub(crate) fn context_view(worker: &BuildWorker, name: &str) -> Result<View, EngineError> {
    let mut views = worker.views.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(view) = views.get(name) {
        return Ok(view.clone());
    }
    let view = open_context(worker, name)?;
    views.insert(name.to_owned(), view.clone());
    Ok(view)
}

fn open_context(worker: &BuildWorker, name: &str) -> Result<View, EngineError> {
    let context =
        worker.contexts.0.get(name).ok_or_else(|| EngineError::Internal(format!("no context is named `{name}`")))?;
    let matcher = ignore::Matcher::new(&context.excludes).map_err(|e| EngineError::Source(e.to_string()))?;
    let filter: Option<tree::Filter> = match matcher.is_empty() {
        true => None,
        false => Some(Arc::new(move |path: &Path, _: bool| visibility(&matcher, path))),
    };
    Ok(View::context(&context.path, filter)?)
}

/// A local directory as a tree: where it is a base.
pub(crate) fn whole_context(worker: &BuildWorker, name: &str) -> Result<TreeId, EngineError> {
    Ok(selected_context(worker, name, "/")?.0)
}

/// A path of a local directory as a tree, at the path where its links lead, which comes with it: where it is mounted. Copied,
/// because ignore rules hide files and a client's directory may change while a step runs.
pub(crate) fn selected_context(
    worker: &BuildWorker,
    name: &str,
    selector: &str,
) -> Result<(TreeId, String), EngineError> {
    let view = context_view(worker, name)?;
    let staging = worker.store.staging()?;
    let diff = staging.path().join("fs");
    std::fs::create_dir(&diff).map_err(|e| EngineError::io("make", &diff, e))?;
    let empty: [&Path; 0] = [];
    let marks = worker.store.marks();
    let writer = DiffWriter::new(&diff, &View::layers(&empty, marks)?, marks)?;
    let selector = if selector.is_empty() { "/" } else { selector };
    let node = view.require(selector, true)?;
    let place = Path::new("/").join(&node.path);
    let destination = if node.meta.is_dir() { format!("{}/", place.display()) } else { place.display().to_string() };
    // Owners of a context read as root's.
    let source = TreeSource::Path { view: &view, path: &place, wildcard: false, required: true };
    writer.copy(&[source], &CopyOptions::faithful(Path::new(&destination)))?;
    writer.finish()?;
    let tree = worker.store.add_tree(Some(staging), &NewTree::default())?;
    Ok((tree, place.display().to_string()))
}

/// Name of a cache mount's lock.
pub(crate) fn lock_name(id: &str) -> String {
    format!("mount-{}", &blake3::hash(id.as_bytes()).to_hex()[..32])
}
