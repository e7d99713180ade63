//! Which paths of a source are meant.

use super::copy::Matcher;
use super::error::{Context, Result, TreeError};
use super::meta::Kind;
use super::view::{View, Visibility, split};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// True if a component has a wildcard that is not escaped.
pub(crate) fn has_wildcard(component: &OsStr) -> bool {
    let mut bytes = component.as_bytes().iter();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// The paths that a pattern means, sorted. A path without wildcards means itself, existing or not.
///
/// The part before the first wildcard is looked up (its last component followed if `follow`) and must exist. Below it links
/// are names like others: they match, but nothing is looked for behind them.
pub(crate) fn expand(view: &View, pattern: &Path, matcher: Matcher<'_>, follow: bool) -> Result<Vec<PathBuf>> {
    let parts: Vec<OsString> = split(pattern.as_os_str()).into();
    let Some(first) = parts.iter().position(|c| has_wildcard(c)) else {
        return Ok(vec![pattern.to_path_buf()]);
    };
    let fixed: PathBuf = parts[..first].iter().collect();
    let Some(node) = view.lookup(&fixed, follow)? else {
        return Err(TreeError::not_found(fixed));
    };
    let mut found = Vec::new();
    if !node.meta.is_dir() {
        return Ok(found);
    }
    let mut todo = vec![(view.open_dir(&node)?, node.path.clone(), fixed, 0)];
    while let Some((dir, real, named, depth)) = todo.pop() {
        let wanted = &parts[first + depth];
        let last = first + depth + 1 == parts.len();
        let (Some(wanted), plain) = (wanted.to_str(), !has_wildcard(wanted)) else {
            continue;
        };
        for entry in dir.entries().context("list", &real)? {
            let Some(name) = entry.name.to_str() else {
                continue;
            };
            if if plain { wanted != name } else { !matcher(wanted, name) } {
                continue;
            }
            let (real, named) = (real.join(name), named.join(name));
            if last {
                let Some(meta) = dir.stat_entry(&entry).context("stat", &real)? else {
                    continue;
                };
                if view.visibility(&real, meta.is_dir()) != Visibility::Hidden {
                    found.push(named);
                }
            } else if matches!(entry.kind, None | Some(Kind::Dir))
                && view.visibility(&real, true) != Visibility::Hidden
                && let Some(child) = dir.child_from(&entry.name, entry.part).context("open", &real)?
            {
                todo.push((child, real, named, depth + 1));
            }
        }
    }
    found.sort_by(|a, b| a.components().cmp(b.components()));
    Ok(found)
}

/// A pattern of `--parents`, relative to its pivot.
#[derive(Debug)]
pub(crate) struct Include<'a> {
    text: String,
    components: Vec<String>,
    matcher: MatcherBox<'a>,
    wildcard: MatcherBox<'a>,
}

pub(crate) struct MatcherBox<'a>(Matcher<'a>);

impl std::fmt::Debug for MatcherBox<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("matcher")
    }
}

/// What a pattern says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It and everything below.
    Yes,
    /// Not it, perhaps something below.
    Below,
    /// Nothing here.
    No,
}

impl<'a> Include<'a> {
    /// `pattern` is cleaned here; `matcher` is for whole paths with `**`, `wildcard` for single components.
    pub(crate) fn new(pattern: &str, matcher: Matcher<'a>, wildcard: Matcher<'a>) -> Include<'a> {
        let mut components: Vec<String> = Vec::new();
        for part in pattern.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                components.pop();
            } else {
                components.push(part.to_string());
            }
        }
        Include { text: components.join("/"), components, matcher: MatcherBox(matcher), wildcard: MatcherBox(wildcard) }
    }

    /// What the pattern says of a path relative to the pivot.
    pub(crate) fn says(&self, path: &Path) -> Said {
        if self.components.is_empty() {
            return Said::Yes;
        }
        let Some(text) = path.to_str() else {
            return Said::No;
        };
        if text.is_empty() {
            return Said::Below;
        }
        if (self.matcher.0)(&self.text, text) {
            return Said::Yes;
        }
        let mut wanted = self.components.iter();
        for name in text.split('/') {
            match wanted.next() {
                Some(w) if w == "**" => return Said::Below,
                Some(w) if w == name || (self.wildcard.0)(w, name) => {}
                _ => return Said::No,
            }
        }
        if wanted.next().is_some() { Said::Below } else { Said::No }
    }
}
