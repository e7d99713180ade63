//! File ops: actions applied to a base, written straight into a new diff directory.

use super::{delta, select};
use crate::EngineError;
use crate::worker::{BuildWorker, Output};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use xbuild_cache::tree::{
    Changes, CopyOptions, CopySource as TreeSource, DiffWriter, Ids, Limits, ModeChange, Time, View, Visibility,
};
use xbuild_cache::{NewTree, TreeId};
use xbuild_frontend::{glob_match, ignore};
use xbuild_graph::{CopyAction, CopySource, FileAction, FileOp, Owner};
use xbuild_runner::users;
use xbuild_solver::Task;

/// Runs all actions of an op; the result is one layer over its base.
pub(crate) fn run(worker: &BuildWorker, op: &FileOp, task: &Task<'_, Output>) -> Result<Output, EngineError> {
    let parent = match op.base.map(|n| &task.inputs[n]) {
        None => TreeId::EMPTY,
        Some(Output::Tree(tree)) => *tree,
        Some(Output::Local(name)) => select::whole_context(worker, name)?,
    };
    // `--link`: the result is the same over any base.
    let link = op.actions.iter().all(|a| matches!(a, FileAction::Copy(copy) if copy.link)) && !op.actions.is_empty();
    let below = if link { Vec::new() } else { worker.store.dirs(parent)? };
    let marks = worker.store.marks();
    let base = View::layers(&below, marks)?;
    let listing = worker.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&task.vertex.index());
    let earlier = match &listing {
        Some(listing) if task.reuse => delta::earlier(&worker.store, task, listing, &base, (!link).then_some(parent))?,
        _ => None,
    };
    let staging = worker.store.staging()?;
    let diff = staging.path().join("fs");
    std::fs::create_dir(&diff).map_err(|e| EngineError::io("make", &diff, e))?;
    let writer = DiffWriter::new(&diff, &base, marks)?;
    let adopted = match (&listing, &earlier) {
        (Some(listing), None) => delta::adopt(worker, task, listing, &writer)?,
        _ => false,
    };
    for action in op.actions.iter().filter(|_| !adopted) {
        apply(worker, &writer, action, task, earlier.as_ref().map(|e| &e.changes))?;
    }
    if let (Some(listing), None) = (&listing, &earlier) {
        delta::keep(worker, task, listing, &writer, &diff)?;
    }
    writer.finish()?;
    let reuse = earlier.map(|e| e.dir).into_iter().collect();
    let changes = changes(worker, op, task);
    let new = NewTree { parent: Some(parent), reuse, changes, ..NewTree::default() };
    Ok(Output::Tree(worker.store.add_tree(Some(staging), &new)?))
}

/// What the op changes follows from the tree below and the digests of what it reads, where all of that is known.
fn changes(worker: &BuildWorker, op: &FileOp, task: &Task<'_, Output>) -> Option<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    hash.update(b"xbuild/file/v1").update(&task.graph[task.vertex].op_digest.0);
    let locals = worker.locals.lock().unwrap_or_else(PoisonError::into_inner);
    let known = locals.get(&task.vertex.index());
    for n in (0..task.inputs.len()).filter(|n| op.base != Some(*n)) {
        hash.update(&known?.get(n).copied()??.0);
    }
    Some(*hash.finalize().as_bytes())
}

fn apply(
    worker: &BuildWorker,
    writer: &DiffWriter,
    action: &FileAction,
    task: &Task<'_, Output>,
    changes: Option<&Changes>,
) -> Result<(), EngineError> {
    let now = worker.epoch.map(time);
    match action {
        FileAction::Copy(copy) => self::copy(worker, writer, copy, task, changes)?,
        FileAction::Mkdir { path, mode, parents, owner } => {
            writer.mkdir(Path::new(path), *mode, *parents, ids(writer.view(), owner.as_ref())?, now)?;
        }
        FileAction::Mkfile { path, mode, data, owner } => {
            writer.mkfile(Path::new(path), *mode, data, ids(writer.view(), owner.as_ref())?, now)?;
        }
        FileAction::Remove { path, allow_missing, wildcard } => {
            let matcher = &glob_match as &(dyn Fn(&str, &str) -> bool + Sync);
            writer.remove(Path::new(path), *allow_missing, wildcard.then_some(matcher))?;
        }
        FileAction::Symlink { target, path, owner } => {
            writer.symlink(OsStr::new(target), Path::new(path), ids(writer.view(), owner.as_ref())?, now)?;
        }
    }
    Ok(())
}

fn time(seconds: i64) -> Time {
    Time { seconds, nanos: 0 }
}

/// Numbers for `--chown`, looked up in the base.
pub(crate) fn ids(base: &View, owner: Option<&Owner>) -> Result<Option<Ids>, EngineError> {
    let Some(owner) = owner else { return Ok(None) };
    let small = |path| Ok::<_, EngineError>(base.read_small(path, super::exec::USERS_MAX)?.unwrap_or_default());
    let (passwd, group) = (small("/etc/passwd")?, small("/etc/group")?);
    // A number stands for user and group alike; a name brings its primary group.
    let (uid, own_group) = match owner.user.parse::<u32>() {
        Ok(number) => (or_unknown(users::resolve(&owner.user, &[], &[]).map(|u| u.identity.uid), number)?, number),
        Err(_) => {
            or_unknown(users::resolve(&owner.user, &passwd, &[]).map(|u| (u.identity.uid, u.identity.gid)), (0, 0))?
        }
    };
    let gid = match owner.group.as_deref() {
        None | Some("") => own_group,
        Some(name) => or_unknown(users::resolve_group(name, &group), own_group)?,
    };
    Ok(Some(Ids { uid, gid }))
}

/// An unknown name is no error, as in BuildKit; a number out of range is one.
fn or_unknown<T>(found: Result<T, users::UserError>, otherwise: T) -> Result<T, EngineError> {
    match found {
        Ok(found) => Ok(found),
        Err(users::UserError::UnknownUser(_) | users::UserError::UnknownGroup(_)) => Ok(otherwise),
        Err(error) => Err(EngineError::Source(error.to_string())),
    }
}

fn copy(
    worker: &BuildWorker,
    writer: &DiffWriter,
    action: &CopyAction,
    task: &Task<'_, Output>,
    changes: Option<&Changes>,
) -> Result<(), EngineError> {
    let owner = ids(writer.view(), action.owner.as_ref())?;
    let mut views: HashMap<usize, View> = HashMap::new();
    for source in &action.sources {
        let input = match source {
            CopySource::Path { .. } => action.input,
            CopySource::Input { input, .. } => *input,
            CopySource::Inline { .. } => continue,
        };
        if let std::collections::hash_map::Entry::Vacant(slot) = views.entry(input) {
            slot.insert(view(worker, &task.inputs[input])?);
        }
    }
    copy_options(action, owner, |options| {
        let options = &CopyOptions { changes, ..options.clone() };
        for source in &action.sources {
            match source {
                CopySource::Path { path, wildcard, required } => {
                    let (view, path) = (&views[&action.input], Path::new(path));
                    writer
                        .copy(&[TreeSource::Path { view, path, wildcard: *wildcard, required: *required }], options)?;
                }
                CopySource::Inline { name, data } => {
                    writer.copy(&[TreeSource::Inline { name: OsStr::new(name), data }], options)?
                }
                CopySource::Input { input, directory } => {
                    let view = &views[input];
                    let path = if *directory { "/".into() } else { only_file(view)? };
                    writer.copy(&[TreeSource::Path { view, path: &path, wildcard: false, required: true }], options)?;
                }
            }
        }
        Ok(())
    })
}

/// An instruction's options in the tree's words, lent to `work` because matchers are.
pub(crate) fn copy_options<T>(
    action: &CopyAction,
    owner: Option<Ids>,
    work: impl FnOnce(&CopyOptions<'_>) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let mode = action.mode.as_deref().map(ModeChange::parse).transpose()?;
    let excludes = ignore::Matcher::new(&action.excludes).map_err(|e| EngineError::Source(e.to_string()))?;
    let exclude = |path: &Path, _: bool| visibility(&excludes, path);
    let globs = Globs::default();
    let glob = |pattern: &str, path: &str| globs.matches(pattern, path);
    work(&CopyOptions {
        destination: Path::new(&action.destination),
        owner,
        keep_owner: action.keep_owner,
        mode,
        unpack: action.unpack,
        parents: action.parents,
        excludes: (!excludes.is_empty()).then_some(&exclude),
        wildcard: &glob_match,
        glob: &glob,
        mtime: action.mtime.map(time),
        clamp: None,
        limits: Limits::default(),
        changes: None,
        digests: None,
    })
}

/// Copies a path of a view into a plain directory, owners kept: the first content of a cache mount, in which steps write.
pub(crate) fn copy_out(view: &View, selector: &str, target: &Path) -> Result<(), EngineError> {
    let node = view.require(if selector.is_empty() { "/" } else { selector }, true)?;
    let writer = DiffWriter::onto(target)?;
    let path = Path::new("/").join(&node.path);
    let source = TreeSource::Path { view, path: &path, wildcard: false, required: true };
    writer.copy(&[source], &CopyOptions::faithful(Path::new("/")))?;
    Ok(writer.finish()?)
}

/// A downloaded file is alone in its tree.
fn only_file(view: &View) -> Result<std::path::PathBuf, EngineError> {
    let root = view.require("/", true)?;
    let files = view.read_dir(&root)?;
    match files.as_slice() {
        [one] => Ok(Path::new("/").join(&one.path)),
        _ => Err(EngineError::Internal("a download is not one file".into())),
    }
}

/// A view of an input: a tree of the store, or a context with its ignore rules.
pub(crate) fn view(worker: &BuildWorker, output: &Output) -> Result<View, EngineError> {
    match output {
        Output::Tree(tree) => Ok(View::layers(&worker.store.dirs(*tree)?, worker.store.marks())?),
        Output::Local(name) => select::context_view(worker, name),
    }
}

/// What ignore patterns say of a path.
pub(crate) fn visibility(matcher: &ignore::Matcher, path: &Path) -> Visibility {
    // Patterns are text; a name that is none can only be matched by `**`, which its readable form is, too.
    let text = path.to_string_lossy();
    match matcher.excluded(&text) {
        false => Visibility::Visible,
        true if matcher.may_hold_exceptions(&text) => Visibility::HiddenButDescend,
        true => Visibility::Hidden,
    }
}

/// Compiled patterns of `--parents`.
#[derive(Default)]
struct Globs(Mutex<HashMap<String, ignore::Matcher>>);

impl Globs {
    fn matches(&self, pattern: &str, path: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let matcher = known.entry(pattern.to_owned()).or_insert_with(|| {
            // A pattern that cannot be read was refused by the frontend.
            ignore::Matcher::new(&[pattern.to_owned()]).unwrap_or_default()
        });
        matcher.excluded(path)
    }
}
