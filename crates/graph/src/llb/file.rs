//! File ops: a chain of actions.
//!
//! Action k of an op with n inputs is `n + k` where a later one names it. A chain names the one before; an op whose actions branch,
//! or that gives several outputs, is refused.

use super::{LlbError, index, malformed, unsupported};
use crate::{CopyAction, CopySource, Edge, FileAction, FileOp, Graph, Op, Owner, SourceOp, Vertex};
use bollard_buildkit_proto::pb::{self, file_action::Action, user_opt::User};

/// A time that is not set, or a mode.
const UNSET: i64 = -1;
const NANOS: i64 = 1_000_000_000;

/// Whether an op only copies without looking at what is below.
pub(super) fn is_link(file: &FileOp) -> bool {
    !file.actions.is_empty() && file.actions.iter().all(|a| matches!(a, FileAction::Copy(copy) if copy.link))
}

/// A file op that makes one directory out of nothing.
pub(super) fn directory(path: &str, mode: u32, uid: u32, gid: u32) -> pb::FileOp {
    let owner = Owner { user: uid.to_string(), group: Some(gid.to_string()) };
    let action = mkdir(path, mode, true, Some(write_owner(&owner, -1)));
    pb::FileOp { actions: chain(vec![(action, -1)], -1, 0) }
}

/// The op of a vertex and those of its inputs that it uses.
pub(super) fn write(
    file: &FileOp,
    vertex: &Vertex,
    graph: &Graph,
    inputs: &[pb::Input],
) -> Result<(pb::FileOp, Vec<pb::Input>), LlbError> {
    let mut used = Used { vertex, graph, chosen: Vec::new() };
    let base = file.base.filter(|_| !is_link(file)).map_or(-1, |n| used.number(n));
    let mut actions = Vec::new();
    for action in &file.actions {
        actions.extend(write_action(action, base, &mut used)?);
    }
    if actions.is_empty() {
        actions.push((mkdir("/", 0o755, true, None), -1));
    }
    let numbers = used.chosen.len();
    let used = used.chosen.iter().map(|n| inputs[*n].clone()).collect();
    Ok((pb::FileOp { actions: chain(actions, base, numbers) }, used))
}

/// Inputs of an op, numbered as they are first used.
struct Used<'a> {
    vertex: &'a Vertex,
    graph: &'a Graph,
    chosen: Vec<usize>,
}

impl Used<'_> {
    fn number(&mut self, input: usize) -> i64 {
        let known = self.chosen.iter().position(|n| *n == input);
        known.unwrap_or_else(|| {
            self.chosen.push(input);
            self.chosen.len() - 1
        }) as i64
    }

    /// Path of the file in a download, or of the root.
    fn download(&self, input: usize) -> String {
        let file = match &self.graph[self.vertex.inputs[input].vertex].op {
            Op::Source(SourceOp::Http(http)) => http.filename.as_deref(),
            _ => None,
        };
        format!("/{}", file.unwrap_or_default())
    }
}

/// Each action on what the one before it left; the last one's files are output 0.
fn chain(actions: Vec<(Action, i64)>, base: i64, inputs: usize) -> Vec<pb::FileAction> {
    let last = actions.len() - 1;
    let numbered = actions.into_iter().enumerate();
    numbered
        .map(|(k, (action, secondary_input))| pb::FileAction {
            input: if k == 0 { base } else { (inputs + k - 1) as i64 },
            secondary_input,
            output: if k == last { 0 } else { -1 },
            action: Some(action),
        })
        .collect()
}

fn mkdir(path: &str, mode: u32, make_parents: bool, owner: Option<pb::ChownOpt>) -> Action {
    Action::Mkdir(pb::FileActionMkDir {
        path: path.to_owned(),
        mode: mode as i32,
        make_parents,
        owner,
        timestamp: UNSET,
    })
}

fn write_action(action: &FileAction, base: i64, used: &mut Used<'_>) -> Result<Vec<(Action, i64)>, LlbError> {
    let owned = |owner: &Option<Owner>| owner.as_ref().map(|o| write_owner(o, base));
    let one = match action {
        FileAction::Copy(copy) => return write_copy(copy, base, used),
        FileAction::Mkdir { path, mode, parents, owner } => mkdir(path, *mode, *parents, owned(owner)),
        FileAction::Mkfile { path, mode, data, owner } => Action::Mkfile(pb::FileActionMkFile {
            path: path.clone(),
            mode: *mode as i32,
            data: data.clone(),
            owner: owned(owner),
            timestamp: UNSET,
        }),
        FileAction::Remove { path, allow_missing, wildcard } => Action::Rm(pb::FileActionRm {
            path: path.clone(),
            allow_not_found: *allow_missing,
            allow_wildcard: *wildcard,
        }),
        FileAction::Symlink { target, path, owner } => Action::Symlink(pb::FileActionSymlink {
            oldpath: target.clone(),
            newpath: path.clone(),
            owner: owned(owner),
            timestamp: UNSET,
        }),
    };
    Ok(vec![(one, -1)])
}

fn write_copy(copy: &CopyAction, base: i64, used: &mut Used<'_>) -> Result<Vec<(Action, i64)>, LlbError> {
    let timestamp = copy.mtime.map_or(UNSET, |seconds| seconds.saturating_mul(NANOS));
    let owner = copy.owner.as_ref().map(|o| write_owner(o, base));
    let octal = copy.mode.as_deref().and_then(|mode| i32::from_str_radix(mode, 8).ok());
    let every = pb::FileActionCopy {
        dest: copy.destination.clone(),
        owner: owner.clone(),
        mode: octal.unwrap_or(UNSET as i32),
        mode_str: copy.mode.clone().filter(|_| octal.is_none()).unwrap_or_default(),
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack_docker_compatibility: copy.unpack,
        create_dest_path: true,
        timestamp,
        exclude_patterns: copy.excludes.clone(),
        ..pb::FileActionCopy::default()
    };
    let mut write_source = |source: &CopySource| match source {
        CopySource::Path { path, wildcard, required } => {
            let mut one = pb::FileActionCopy { src: path.clone(), ..every.clone() };
            if copy.parents {
                let (top, below) = path.split_once("/./").unwrap_or(("", path.trim_start_matches('/')));
                one.src = if top.is_empty() { "/".to_owned() } else { top.to_owned() };
                one.include_patterns = vec![below.to_owned()];
                one.required_paths = required.then(|| below.to_owned()).into_iter().collect();
            } else {
                one.allow_wildcard = *wildcard;
                one.allow_empty_wildcard = *wildcard && !*required;
            }
            Ok((Action::Copy(one), used.number(copy.input)))
        }
        CopySource::Input { input, .. } => {
            let src = used.download(*input);
            Ok((Action::Copy(pb::FileActionCopy { src, ..every.clone() }), used.number(*input)))
        }
        CopySource::Inline { .. } if copy.mode.is_some() && octal.is_none() => {
            Err(unsupported("a file of a heredoc whose mode is not a number"))
        }
        CopySource::Inline { name, data } => {
            let path = match copy.destination.ends_with('/') {
                true => format!("{}{name}", copy.destination),
                false => copy.destination.clone(),
            };
            let (mode, data) = (octal.unwrap_or(0o644), data.clone());
            Ok((Action::Mkfile(pb::FileActionMkFile { path, mode, data, owner: owner.clone(), timestamp }), -1))
        }
    };
    copy.sources.iter().map(&mut write_source).collect()
}

/// Names are looked up in input `base`.
fn write_owner(owner: &Owner, base: i64) -> pb::ChownOpt {
    let one = |name: &str| pb::UserOpt {
        user: Some(match name.parse() {
            Ok(number) => User::ById(number),
            Err(_) => User::ByName(pb::NamedUserOpt { name: name.to_owned(), input: base }),
        }),
    };
    pb::ChownOpt { user: Some(one(&owner.user)), group: owner.group.as_deref().map(one) }
}

/// The op of a vertex with these inputs.
pub(super) fn read(file: pb::FileOp, inputs: &[Edge], graph: &Graph) -> Result<FileOp, LlbError> {
    let mut base = None;
    let mut actions = Vec::new();
    let last = file.actions.len().checked_sub(1).ok_or_else(|| malformed("a file op without actions"))?;
    for (k, action) in file.actions.into_iter().enumerate() {
        if k == 0 {
            base = index(action.input, inputs.len())?;
        } else if action.input != (inputs.len() + k - 1) as i64 {
            return Err(unsupported("file actions that branch"));
        }
        if action.output != if k == last { 0 } else { -1 } {
            return Err(unsupported("several outputs of a file op"));
        }
        let copied = action.secondary_input;
        let action = action.action.ok_or_else(|| malformed("a file action without work"))?;
        actions.push(read_action(action, copied, Place { base, inputs, graph })?);
    }
    Ok(FileOp { base, actions })
}

/// What an action's numbers refer to.
#[derive(Clone, Copy)]
struct Place<'a> {
    base: Option<usize>,
    inputs: &'a [Edge],
    graph: &'a Graph,
}

fn read_action(action: Action, copied: i64, place: Place<'_>) -> Result<FileAction, LlbError> {
    let no_time = |timestamp| match timestamp {
        UNSET => Ok(()),
        _ => Err(unsupported("a time of a made file")),
    };
    Ok(match action {
        Action::Copy(copy) => FileAction::Copy(Box::new(read_copy(copy, copied, place)?)),
        Action::Mkdir(dir) => {
            no_time(dir.timestamp)?;
            let (mode, owner) = (read_mode(dir.mode)?, read_owner(dir.owner, place)?);
            FileAction::Mkdir { path: dir.path, mode, parents: dir.make_parents, owner }
        }
        Action::Mkfile(file) => {
            no_time(file.timestamp)?;
            let (mode, owner) = (read_mode(file.mode)?, read_owner(file.owner, place)?);
            FileAction::Mkfile { path: file.path, mode, data: file.data, owner }
        }
        Action::Rm(rm) => {
            FileAction::Remove { path: rm.path, allow_missing: rm.allow_not_found, wildcard: rm.allow_wildcard }
        }
        Action::Symlink(link) => {
            no_time(link.timestamp)?;
            let owner = read_owner(link.owner, place)?;
            FileAction::Symlink { target: link.oldpath, path: link.newpath, owner }
        }
    })
}

fn read_copy(copy: pb::FileActionCopy, copied: i64, place: Place<'_>) -> Result<CopyAction, LlbError> {
    if !copy.dir_copy_contents || !copy.create_dest_path {
        return Err(unsupported("a copy of another form than COPY's"));
    }
    if copy.always_replace_existing_dest_paths {
        return Err(unsupported("a copy that replaces directories"));
    }
    if copied >= place.inputs.len() as i64 {
        return Err(unsupported("file actions that branch"));
    }
    let input = index(copied, place.inputs.len())?.ok_or_else(|| unsupported("a copy of nothing"))?;
    let mtime = match copy.timestamp {
        UNSET => None,
        nanos if nanos.rem_euclid(NANOS) == 0 => Some(nanos.div_euclid(NANOS)),
        _ => return Err(unsupported("a time of a copied file that is no whole second")),
    };
    let mode = match (copy.mode_str.as_str(), copy.mode) {
        ("", -1) => None,
        ("", mode) => Some(format!("{:o}", read_mode(mode)?)),
        (text, _) => Some(text.to_owned()),
    };
    let parents = !copy.include_patterns.is_empty();
    let wildcard = copy.allow_wildcard && copy.src.contains(['*', '?', '[']);
    let sources = match parents {
        false => {
            let required = !(wildcard && copy.allow_empty_wildcard);
            vec![CopySource::Path { path: copy.src, wildcard, required }]
        }
        true => {
            let top = copy.src.trim_end_matches('/');
            let required = |pattern: &String| copy.required_paths.contains(pattern);
            let each = copy.include_patterns.iter();
            each.map(|pattern| CopySource::Path {
                path: format!("{top}/./{pattern}"),
                wildcard: pattern.contains(['*', '?', '[']),
                required: required(pattern),
            })
            .collect()
        }
    };
    let from = &place.graph[place.inputs[input].vertex].op;
    Ok(CopyAction {
        input,
        sources,
        destination: copy.dest,
        owner: read_owner(copy.owner, place)?,
        keep_owner: !matches!(from, Op::Source(SourceOp::Local(_))),
        mode,
        unpack: copy.attempt_unpack_docker_compatibility,
        parents,
        excludes: copy.exclude_patterns,
        link: false,
        mtime,
    })
}

fn read_mode(mode: i32) -> Result<u32, LlbError> {
    let mode = u32::try_from(mode).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| malformed("a mode out of range"))
}

fn read_owner(owner: Option<pb::ChownOpt>, place: Place<'_>) -> Result<Option<Owner>, LlbError> {
    let one = |user: Option<pb::UserOpt>| match user.and_then(|u| u.user) {
        None => Ok(None),
        Some(User::ById(number)) => Ok(Some(number.to_string())),
        Some(User::ByName(named)) if index(named.input, place.inputs.len())? == place.base => Ok(Some(named.name)),
        Some(User::ByName(_)) => Err(unsupported("an owner whose name is looked up in another tree")),
    };
    let Some(owner) = owner else { return Ok(None) };
    Ok(match (one(owner.user)?, one(owner.group)?) {
        (None, None) => None,
        (user, group) => Some(Owner { user: user.unwrap_or_else(|| "0".to_owned()), group }),
    })
}
