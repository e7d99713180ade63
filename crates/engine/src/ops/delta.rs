//! A copy of a local directory after an earlier one: the earlier diff directory stays, and a small one beside it makes the
//! difference.
//!
//! The directory that a whole copy makes has a listing beside it. Later copies by the same instruction, over whatever tree,
//! are made of it and one directory of changes, until the changes are too many: then everything is copied again.

use super::file::{copy_options, ids};
use super::select;
use crate::EngineError;
use crate::worker::{BuildWorker, Output};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use xbuild_cache::tree::{
    self, Changes, CopyOptions, CopySource as TreeSource, DiffWriter, FileDigests, Listing, ListingWriter, View,
};
use xbuild_cache::{Staging, Store, Tree, TreeId};
use xbuild_graph::{CopyAction, CopySource, FileAction, FileOp, Op};
use xbuild_solver::Task;

/// Trees of the same instruction that are looked at; other projects may have it, too.
const CANDIDATES: u32 = 8;
/// A copy of less is not worth comparing.
const FEWEST_CHANGES: u64 = 64;
/// One in so many names may have changed.
const SHARE: u64 = 8;

/// The copy that is all an op does, if what it takes of input `n` can be listed.
pub(crate) fn listable(op: &Op, n: usize) -> Option<&CopyAction> {
    let Op::File(FileOp { base, actions }) = op else { return None };
    let [FileAction::Copy(copy)] = actions.as_slice() else { return None };
    let one_path = matches!(copy.sources.as_slice(), [CopySource::Path { .. }]);
    (one_path && copy.input == n && *base != Some(n)).then_some(&**copy)
}

/// Digest and listing of what a copy takes of a local directory. There is no listing of a single file.
pub(crate) fn list(
    worker: &BuildWorker,
    copy: &CopyAction,
    name: &str,
    view: &View,
    files: &dyn FileDigests,
) -> Result<([u8; 32], Option<Listing>), EngineError> {
    let spill = worker.store.root().join("staging");
    let origin = worker.contexts.0.get(name).map(|c| c.path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    let origin = *blake3::hash(origin).as_bytes();
    copy_options(copy, None, |options| {
        let [CopySource::Path { path, wildcard, required }] = copy.sources.as_slice() else {
            return Err(EngineError::Internal("a copy of several sources is not listed".into()));
        };
        let source = TreeSource::Path { view, path: Path::new(path), wildcard: *wildcard, required: *required };
        Ok(tree::selection_listing(source, options, files, ListingWriter::new(&spill), origin)?)
    })
}

/// An earlier copy that can stay, and what is different now.
pub(crate) struct Earlier {
    pub(crate) dir: PathBuf,
    pub(crate) changes: Changes,
}

/// Looks for an earlier copy that a few changes turn into one of `listing` over `base`, which is the tree `parent` or, for a
/// copy that is independent of what lies below, empty.
pub(crate) fn earlier(
    store: &Store,
    task: &Task<'_, Output>,
    listing: &Listing,
    base: &View,
    parent: Option<TreeId>,
) -> Result<Option<Earlier>, EngineError> {
    let Some(copy) = listable(&task.graph[task.vertex].op, task_input(task)) else { return Ok(None) };
    let mut candidates = Vec::new();
    for id in store.made_before(&task.graph[task.vertex].op_digest.0, CANDIDATES)? {
        // A tree that is gone or has no listing is no candidate.
        let Ok(tree) = store.tree(id) else { continue };
        let Some(dir) = tree.dirs.last().cloned() else { continue };
        if let Some(old) = Listing::open(&listing_of(&dir)) {
            candidates.push((old, dir, tree));
        }
    }
    candidates.sort_by_key(|(old, ..)| old.origin() != listing.origin());
    candidates.dedup_by(|a, b| a.1 == b.1);
    let most = (listing.len() / SHARE).max(FEWEST_CHANGES);
    for (old, dir, tree) in candidates.into_iter().take(2) {
        let Ok(Some(changes)) = tree::changes(&old, listing, most) else { continue };
        if stands(store, copy, base, parent, &tree, &changes, listing)? {
            return Ok(Some(Earlier { dir, changes }));
        }
    }
    Ok(None)
}

/// True if the earlier copy is over `base` what it is over the tree that it was made for.
fn stands(
    store: &Store,
    copy: &CopyAction,
    base: &View,
    parent: Option<TreeId>,
    tree: &Tree,
    changes: &Changes,
    listing: &Listing,
) -> Result<bool, EngineError> {
    let below = match parent {
        Some(parent) if parent != tree.parent => Some(View::layers(&store.dirs(tree.parent)?, store.marks())?),
        _ => None,
    };
    if let Some(below) = &below
        && ids(below, copy.owner.as_ref())? != ids(base, copy.owner.as_ref())?
    {
        return Ok(false);
    }
    Ok(tree::fits(base, below.as_ref(), Path::new(&copy.destination), changes, listing)?)
}

/// The input that the one copy of an op reads.
fn task_input(task: &Task<'_, Output>) -> usize {
    match &task.graph[task.vertex].op {
        Op::File(FileOp { actions, .. }) => match actions.as_slice() {
            [FileAction::Copy(copy)] => copy.input,
            _ => usize::MAX,
        },
        _ => usize::MAX,
    }
}

/// Keeps a listing beside the diff directory `dir` that was just made of it, unless files changed since they were listed.
pub(crate) fn keep(
    worker: &BuildWorker,
    task: &Task<'_, Output>,
    listing: &Listing,
    writer: &DiffWriter,
    dir: &Path,
) -> Result<(), EngineError> {
    let Some(Output::Local(name)) = task.inputs.get(task_input(task)) else { return Ok(()) };
    let began = worker.stat_index(name)?.opened();
    if writer.newest_source().max(listing.newest_change()).is_none_or(|newest| newest < began) {
        listing.save(&listing_of(dir))?;
    }
    Ok(())
}

/// A copy of a directory that can be staged.
pub(crate) struct Stageable<'a> {
    copy: &'a CopyAction,
    path: &'a str,
    view: View,
}

/// The copy, if it is one whose files [`adopt`] could take over.
pub(crate) fn stageable<'a>(
    worker: &BuildWorker,
    copy: &'a CopyAction,
    name: &str,
) -> Result<Option<Stageable<'a>>, EngineError> {
    let [CopySource::Path { path, wildcard: false, .. }] = copy.sources.as_slice() else { return Ok(None) };
    let view = select::context_view(worker, name)?;
    let is_dir = view.lookup(path, true).is_ok_and(|node| node.is_some_and(|node| node.meta.is_dir()));
    Ok((is_dir && !copy.parents && copy.owner.is_none()).then_some(Stageable { copy, path, view }))
}

impl Stageable<'_> {
    /// Copies the directory into the root of a new diff directory, and remembers the digests of its files.
    /// None if files changed meanwhile.
    pub(crate) fn stage(&self, worker: &BuildWorker, name: &str) -> Result<Option<Staging>, EngineError> {
        let index = worker.stat_index(name)?;
        let staging = worker.store.staging()?;
        let diff = staging.path().join("fs");
        std::fs::create_dir(&diff).map_err(|e| EngineError::io("make", &diff, e))?;
        let marks = worker.store.marks();
        let writer = DiffWriter::new(&diff, &View::layers::<&Path>(&[], marks)?, marks)?;
        copy_options(self.copy, None, |options| {
            let options = CopyOptions { destination: Path::new("/"), digests: Some(&*index), ..options.clone() };
            let path = Path::new(self.path);
            let source = TreeSource::Path { view: &self.view, path, wildcard: false, required: true };
            Ok(writer.copy(&[source], &options)?)
        })?;
        let steady = writer.newest_source().is_none_or(|newest| newest < index.opened());
        writer.finish()?;
        Ok(steady.then_some(staging))
    }
}

/// Takes over what was staged for a copy. False if it has to be copied after all.
pub(crate) fn adopt(
    worker: &BuildWorker,
    task: &Task<'_, Output>,
    listing: &Listing,
    writer: &DiffWriter,
) -> Result<bool, EngineError> {
    let staged = worker.staged.lock().unwrap_or_else(PoisonError::into_inner).remove(&task.vertex.index());
    let (n, Some(staged)) = (task_input(task), staged) else { return Ok(false) };
    let (Some(copy), Some(Output::Local(name))) = (listable(&task.graph[task.vertex].op, n), task.inputs.get(n)) else {
        return Ok(false);
    };
    let [CopySource::Path { path, .. }] = copy.sources.as_slice() else { return Ok(false) };
    let began = worker.stat_index(name)?.opened();
    if listing.newest_change().is_none_or(|newest| newest >= began) {
        return Ok(false);
    }
    let node = select::context_view(worker, name)?.require(path, true)?;
    copy_options(copy, None, |options| Ok(writer.adopt(&staged.path().join("fs"), &node, options, listing)?))
}

/// Where the listing of a diff directory is.
fn listing_of(dir: &Path) -> PathBuf {
    dir.with_file_name("listing")
}
