//! Dockerfile text → syntax tree with all its problems.

mod casing;
mod descriptions;
mod flags;
mod instruction;
pub(crate) mod lexical;
mod lines;
pub(crate) mod mount;
mod tree;

pub use tree::{Copy, Directives, From, Heredoc, Instruction, Kind, Parsed, Run, ShellForm, Stage, Tree};

use crate::rules::{DUPLICATE_STAGE_NAME, NO_EMPTY_CONTINUATION};
use crate::{Diagnostic, Severity, SourceFile};
use instruction::Built;
use lines::Logical;
use std::collections::BTreeSet;
use xbuild_graph::Span;

/// Reads a Dockerfile. Takes time linear in its size and never fails: what cannot be read is left out of the tree and told in
/// the diagnostics.
pub fn parse(source: &SourceFile) -> Parsed {
    let lines = lines::read(source);
    let mut builder = Builder { escape: lines.directives.escape, tree: Tree::default(), problems: lines.problems };
    let empty = lines.logical.is_empty() && builder.problems.is_empty();
    for logical in &lines.logical {
        builder.add(logical);
    }
    if empty {
        builder.problems.push(Diagnostic::error("the Dockerfile cannot be empty", None));
    } else if builder.tree.stages.is_empty() && builder.problems.iter().all(|p| p.severity != Severity::Error) {
        builder.problems.push(Diagnostic::error("no build stage in the Dockerfile: there is no FROM", None));
    }
    casing::check(&builder.tree, &mut builder.problems);
    descriptions::check(&builder.tree, &mut builder.problems);
    duplicate_names(&builder.tree, &mut builder.problems);
    let check = lines.directives.check.clone();
    builder.problems.retain(|p| p.rule.is_none_or(|rule| check.wants(rule) || rule.experimental));
    builder.problems.sort_by_key(|p| p.at.map_or(0, |at| at.start));
    Parsed { tree: builder.tree, directives: lines.directives, diagnostics: builder.problems }
}

/// Reads the instruction that a base image's ONBUILD left behind; `span` is the FROM that brought it.
pub(crate) fn parse_trigger(text: &str, span: Span) -> Result<Instruction, Diagnostic> {
    let fail = |why: &str| Diagnostic::error(format!("ONBUILD trigger `{text}`: {why}"), span);
    let source = SourceFile::new("ONBUILD", text);
    let lines = lines::read(&source);
    if let Some(problem) = lines.problems.first() {
        return Err(fail(&problem.message));
    }
    let [logical] = lines.logical.as_slice() else {
        return Err(fail("is not one instruction"));
    };
    let mut unused = Vec::new();
    match instruction::build(logical, '\\', &mut unused) {
        Ok((keyword, Built::Kind(kind))) => Ok(Instruction {
            keyword: keyword.to_owned(),
            text: logical.text.clone(),
            span,
            comments: Vec::new(),
            kind,
        }),
        Ok((keyword, Built::From(_))) => Err(fail(&format!("{keyword} isn't allowed as an ONBUILD trigger"))),
        Err(problem) => Err(fail(&problem.message)),
    }
}

struct Builder {
    escape: char,
    tree: Tree,
    problems: Vec<Diagnostic>,
}

impl Builder {
    fn add(&mut self, logical: &Logical) {
        if let Some(last) = logical.blank_continuation {
            let message = "Empty continuation line";
            self.problems.push(Diagnostic::warning(&NO_EMPTY_CONTINUATION, message, last));
        }
        match instruction::build(logical, self.escape, &mut self.problems) {
            Err(problem) => {
                self.problems.push(problem);
                let is_from = lexical::keyword(&logical.text).0.eq_ignore_ascii_case("from");
                if is_from {
                    self.tree.stages.push(stage(From::default(), "FROM", logical));
                }
            }
            Ok((keyword, Built::From(from))) => {
                self.tree.stages.push(stage(from, keyword, logical));
            }
            Ok((keyword, Built::Kind(kind))) => self.place(keyword, kind, logical),
        }
    }

    fn place(&mut self, keyword: &str, kind: Kind, logical: &Logical) {
        let instruction = Instruction {
            keyword: keyword.to_owned(),
            text: logical.text.clone(),
            span: logical.span,
            comments: logical.comments.clone(),
            kind,
        };
        match (self.tree.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Kind::Arg(_)) => self.tree.global_args.push(instruction),
            (None, _) => {
                let message = format!("no build stage in current context: {keyword} comes before the first FROM");
                self.problems.push(Diagnostic::error(message, logical.span));
            }
        }
    }
}

fn stage(from: From, keyword: &str, logical: &Logical) -> Stage {
    Stage {
        from,
        keyword: keyword.to_owned(),
        span: logical.span,
        comments: logical.comments.clone(),
        instructions: Vec::new(),
    }
}

fn duplicate_names(tree: &Tree, problems: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    for stage in &tree.stages {
        let Some(name) = &stage.from.name else {
            continue;
        };
        if !seen.insert(name) {
            let message = format!("Duplicate stage name \"{name}\", stage names should be unique");
            problems.push(Diagnostic::warning(&DUPLICATE_STAGE_NAME, message, stage.span));
        }
    }
}

/// A truth value as Go's strconv reads it.
pub(crate) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
