//! COPY and ADD.

use super::configuration::owner;
use super::dispatch::Work;
use super::layout::Place;
use super::{GitReference, mode};
use crate::glob::{contains_wildcards, glob_valid};
use crate::ignore::clean;
use crate::parse::Heredoc;
use crate::rules::COPY_IGNORED_FILE;
use crate::shell::Expander;
use crate::{Copy, Diagnostic, Instruction};
use xbuild_graph::{CopyAction, CopySource, Edge, FileAction, FileOp, HttpSource, Op, Owner, SourceOp, Span};

/// A COPY or ADD with everything expanded.
struct Expanded {
    chown: Option<String>,
    chmod: Option<String>,
    checksum: Option<String>,
    excludes: Vec<String>,
    sources: Vec<String>,
    destination: String,
}

/// Inputs of the vertex being made.
#[derive(Default)]
struct Inputs {
    edges: Vec<Edge>,
}

impl Inputs {
    fn add(&mut self, edge: Edge) -> usize {
        let known = self.edges.iter().position(|e| *e == edge);
        known.unwrap_or_else(|| {
            self.edges.push(edge);
            self.edges.len() - 1
        })
    }
}

impl Work<'_, '_> {
    /// One COPY or ADD.
    pub(super) fn copy(
        &mut self,
        copy: &Copy,
        instruction: &Instruction,
        place: Place,
        is_add: bool,
    ) -> Result<(), Diagnostic> {
        let span = instruction.span;
        let fail = |why: String| Diagnostic::error(why, span);
        let expanded = self.expand_copy(copy, span)?;
        let owner = self.owner(copy, &expanded, span)?;
        if let Some(mode) = &expanded.chmod {
            mode::check(mode).map_err(fail)?;
        }
        self.lowering.charge(self.state.cwd().len(), span)?;
        let mut inputs = Inputs::default();
        let base = self.state.files.map(|files| inputs.add(files));
        let sources = self.sources(copy, &expanded, &mut inputs, place, span, is_add)?;
        let (input, keep_owner) = match sources.from {
            Some(from) => (inputs.add(from.0), from.1),
            None => (0, false),
        };
        let action = CopyAction {
            input,
            sources: sources.list,
            destination: self.destination(&expanded.destination),
            owner,
            keep_owner,
            mode: expanded.chmod.clone(),
            unpack: is_add && copy.unpack.unwrap_or(!sources.remote),
            parents: copy.parents,
            excludes: expanded.excludes.clone(),
            link: copy.link,
            mtime: None,
        };
        let mut text = instruction.text.clone();
        if let Some(first) = copy.inline.first() {
            text = format!("{text} {}", super::names::summary(&first.data));
        }
        let meta = self.meta(&text, span);
        let name = meta.name.clone();
        let op = Op::File(FileOp { base, actions: vec![FileAction::Copy(Box::new(action))] });
        let files = self.lowering.vertex(op, inputs.edges, meta);
        self.set_files(files, name);
        self.commit(created_by(copy, &expanded, is_add), true, span)
    }

    fn expand_copy(&mut self, copy: &Copy, span: Span) -> Result<Expanded, Diagnostic> {
        let mut optional = |text: &Option<String>| -> Result<Option<String>, Diagnostic> {
            let done = text.as_ref().map(|t| self.expand(t, span)).transpose()?;
            Ok(done.filter(|t| !t.is_empty()))
        };
        let chown = optional(&copy.chown)?;
        let chmod = optional(&copy.chmod)?;
        let checksum = optional(&copy.checksum)?;
        let mut list = |texts: &[String]| -> Result<Vec<String>, Diagnostic> {
            texts.iter().map(|t| self.expand(t, span)).collect()
        };
        let excludes = list(&copy.exclude)?;
        let sources = list(&copy.sources)?;
        let destination = self.expand(&copy.destination, span)?;
        Ok(Expanded { chown, chmod, checksum, excludes, sources, destination })
    }

    fn owner(&self, copy: &Copy, expanded: &Expanded, span: Span) -> Result<Option<Owner>, Diagnostic> {
        let Some(text) = &expanded.chown else {
            return Ok(None);
        };
        let owner = owner(text);
        let number = |name: &str| name.is_empty() || name.parse::<u32>().is_ok();
        let by_number = number(&owner.user) && owner.group.as_deref().is_none_or(number);
        if copy.link && !by_number {
            let message = format!(
                "--chown={text}: with --link, users and groups must be numbers, since their names cannot be looked up"
            );
            return Err(Diagnostic::error(message, span));
        }
        Ok(Some(owner))
    }

    /// The destination as an absolute path, a trailing slash kept.
    fn destination(&self, written: &str) -> String {
        let directory = written.is_empty() || written.ends_with('/') || written == "." || written.ends_with("/.");
        let path = match written.starts_with('/') {
            true => clean(written),
            false => clean(&format!("/{}/{written}", self.state.cwd())),
        };
        match directory && path != "/" {
            true => path + "/",
            false => path,
        }
    }

    fn sources(
        &mut self,
        copy: &Copy,
        expanded: &Expanded,
        inputs: &mut Inputs,
        place: Place,
        span: Span,
        is_add: bool,
    ) -> Result<Sources, Diagnostic> {
        let mut found = Sources::default();
        let fail = |why: String| Diagnostic::error(why, span);
        for source in &expanded.sources {
            let remote = self.remote(source, copy, expanded, span, is_add)?;
            if let Some((edge, directory)) = remote {
                found.remote = true;
                let input = inputs.add(edge);
                found.list.push(CopySource::Input { input, directory });
                continue;
            }
            if expanded.checksum.is_some() {
                return Err(fail("checksum requires HTTP(S) or Git sources".to_owned()));
            }
            found.local = true;
            if copy.from.is_none() {
                self.check_ignored(source, is_add, span)?;
            }
            found.list.push(path_source(source, copy.parents).map_err(fail)?);
        }
        if found.local {
            found.from = Some(match self.source_state(place) {
                Some(state) => {
                    let keep = state.keep_owner;
                    let files = state.files;
                    (files.unwrap_or_else(|| self.lowering.nothing()), keep)
                }
                None => (self.lowering.context().map_err(fail)?, false),
            });
        }
        for heredoc in &copy.inline {
            found.list.push(self.inline(heredoc, span)?);
        }
        Ok(found)
    }

    /// A source of ADD that is downloaded or cloned.
    fn remote(
        &mut self,
        source: &str,
        copy: &Copy,
        expanded: &Expanded,
        span: Span,
        is_add: bool,
    ) -> Result<Option<(Edge, bool)>, Diagnostic> {
        let fail = |why: String| Diagnostic::error(why, span);
        let is_url = source.starts_with("http://") || source.starts_with("https://");
        if !is_add {
            return match is_url && copy.from.is_none() {
                true => Err(fail(format!("source can't be a URL for COPY: {source}"))),
                false => Ok(None),
            };
        }
        if expanded.checksum.is_some() && expanded.sources.len() != 1 {
            return Err(fail("checksum can't be specified for multiple sources".to_owned()));
        }
        if let Some(git) = GitReference::parse(source).map_err(fail)? {
            let mut git = git.source();
            git.keep_git_dir |= copy.keep_git_dir;
            git.checksum = expanded.checksum.clone().or(git.checksum);
            let edge = self.lowering.source(SourceOp::Git(git), &format!("[internal] load {source}"), Some(span));
            return Ok(Some((edge, true)));
        }
        if !is_url {
            return Ok(None);
        }
        if let Some(checksum) = &expanded.checksum {
            check_digest(checksum).map_err(fail)?;
        }
        let op = SourceOp::Http(HttpSource {
            url: source.to_owned(),
            checksum: expanded.checksum.clone(),
            filename: Some(file_name(source)),
        });
        Ok(Some((self.lowering.source(op, source, Some(span)), false)))
    }

    fn check_ignored(&mut self, source: &str, is_add: bool, span: Span) -> Result<(), Diagnostic> {
        let path = clean(&format!("/{source}"));
        let ignored = self.lowering.ignored(&path[1..]);
        if ignored.map_err(|why| Diagnostic::error(why, span))? {
            let verb = if is_add { "Add" } else { "Copy" };
            let message = format!("Attempting to {verb} file \"{source}\" that is excluded by .dockerignore");
            self.lowering.warnings.push(Diagnostic::warning(&COPY_IGNORED_FILE, message, span));
        }
        Ok(())
    }

    /// A heredoc as a file.
    fn inline(&mut self, heredoc: &Heredoc, span: Span) -> Result<CopySource, Diagnostic> {
        let mut data = heredoc.content();
        if heredoc.expand && data.iter().any(|b| *b == b'$' || *b == b'\\') {
            let text = String::from_utf8_lossy(&data);
            let done = Expander::heredoc().expand(&text, &self.state.env, &mut self.lowering.budget);
            data = done
                .map_err(|why| Diagnostic::error(format!("heredoc `{}`: {why}", heredoc.name), span))?
                .text
                .into_bytes();
        }
        Ok(CopySource::Inline { name: heredoc.name.clone(), data })
    }
}

/// What a copy reads.
#[derive(Default)]
struct Sources {
    list: Vec<CopySource>,
    /// Tree of the paths, and whether owners are kept.
    from: Option<(Edge, bool)>,
    local: bool,
    remote: bool,
}

/// A path or pattern of the context, a stage or an image; a pattern that cannot be read would silently fit nothing.
fn path_source(written: &str, parents: bool) -> Result<CopySource, String> {
    let rooted = |path: &str| clean(&format!("/{path}"));
    let pivot = written.split_once("/./").filter(|_| parents);
    let path = match pivot {
        Some((before, after)) => {
            let before = rooted(before);
            format!("{}/.{}", before.trim_end_matches('/'), rooted(after))
        }
        None => rooted(written),
    };
    let wildcard = contains_wildcards(written);
    if wildcard && !glob_valid(&path) {
        return Err(format!("syntax error in pattern `{written}`"));
    }
    Ok(CopySource::Path { path, wildcard, required: !wildcard })
}

/// The last part of an address' path.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split_once('/').and_then(|(_, p)| p.trim_end_matches('/').rsplit('/').next());
    match name {
        Some(name) if !matches!(name, "" | "." | "..") => percent_decoded(name),
        _ => "__unnamed__".to_owned(),
    }
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        match byte.filter(|b| *b != b'/' && *b != 0) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn check_digest(text: &str) -> Result<(), String> {
    let lengths = [("sha256:", 64), ("sha384:", 96), ("sha512:", 128)];
    let fits = |(prefix, length): &(&str, usize)| {
        text.strip_prefix(prefix).is_some_and(|hex| {
            hex.len() == *length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    match lengths.iter().any(fits) {
        true => Ok(()),
        false => Err(format!("invalid checksum digest format: `{text}` is not like sha256:<64 hexadecimal digits>")),
    }
}

/// The text in the history.
fn created_by(copy: &Copy, expanded: &Expanded, is_add: bool) -> String {
    let mut text = if is_add { "ADD" } else { "COPY" }.to_owned();
    if copy.parents {
        text.push_str(" --parents");
    }
    if let Some(chown) = &expanded.chown {
        text.push_str(&format!(" --chown={chown}"));
    }
    if let Some(chmod) = &expanded.chmod {
        text.push_str(&format!(" --chmod={chmod}"));
    }
    for source in &expanded.sources {
        text.push_str(&format!(" {source}"));
    }
    for heredoc in &copy.inline {
        text.push_str(&format!(" <<{}", heredoc.name));
    }
    format!("{text} {} # buildkit", expanded.destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_downloads() {
        for (url, want) in [
            ("http://h/a/b.txt?x=y", "b.txt"),
            ("http://h/a%20b", "a b"),
            ("http://h/", "__unnamed__"),
            ("http://h", "__unnamed__"),
            ("http://h/a/..%2fb", "..%2fb"),
        ] {
            assert_eq!(file_name(url), want, "{url}");
        }
    }

    #[test]
    fn pivots_are_kept_with_parents() {
        let path = |written, parents| match path_source(written, parents).unwrap() {
            CopySource::Path { path, .. } => path,
            _ => unreachable!(),
        };
        assert_eq!(path("./x/./y/a", true), "/x/./y/a");
        assert_eq!(path("./x/./y/a", false), "/x/y/a");
        assert_eq!(path("../../a", false), "/a");
    }

    #[test]
    fn patterns_must_be_readable() {
        for bad in ["q[1.txt", "[", "a/[]b]", "[a-]", "[^", "*/[x", "*\\", "[a\\", "[-a]"] {
            assert_eq!(path_source(bad, false).unwrap_err(), format!("syntax error in pattern `{bad}`"));
        }
        for good in ["q[1].txt", "[z-a]", "[\\]]", "\\[", "a]", "a-b", "*", "[^a]?"] {
            assert!(path_source(good, true).is_ok(), "{good}");
        }
    }
}
