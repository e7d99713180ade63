//! Check of comments that look like descriptions.

use super::{Instruction, Kind, Tree};
use crate::Diagnostic;
use crate::rules::INVALID_DEFINITION_DESCRIPTION;
use xbuild_graph::Span;

/// Adds the findings for a tree.
pub(super) fn check(tree: &Tree, problems: &mut Vec<Diagnostic>) {
    let inner = tree.stages.iter().flat_map(|s| &s.instructions);
    for Instruction { kind, comments, span, .. } in tree.global_args.iter().chain(inner) {
        if let Kind::Arg(list) = kind {
            let names: Vec<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
            one(&names, "argument", comments, *span, problems);
        }
    }
    for stage in &tree.stages {
        if let Some(name) = &stage.from.name {
            one(&[name], "build stage", &stage.comments, stage.span, problems);
        }
    }
}

fn one(names: &[&str], what: &str, comments: &[String], span: Span, problems: &mut Vec<Diagnostic>) {
    let describes = |line: &String| {
        let rest = |name: &&str| line.strip_prefix(*name).is_some_and(|r| r.starts_with(' '));
        names.iter().any(rest)
    };
    if comments.is_empty() || comments.iter().any(describes) {
        return;
    }
    let message = format!("Comment for {what} should follow the format: `# {} <description>`", names.join("|"));
    problems.push(Diagnostic::warning(&INVALID_DEFINITION_DESCRIPTION, message, span));
}
