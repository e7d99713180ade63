//! Checks of upper and lower case.

use super::{Stage, Tree};
use crate::Diagnostic;
use crate::rules::{CONSISTENT_INSTRUCTION_CASING, FROM_AS_CASING, RESERVED_STAGE_NAME, STAGE_NAME_CASING};
use xbuild_graph::Span;

/// Adds the findings for a tree.
pub(super) fn check(tree: &Tree, problems: &mut Vec<Diagnostic>) {
    for stage in &tree.stages {
        names(stage, problems);
    }
    let keywords: Vec<(&str, Span)> = tree.stages.iter().flat_map(keywords_of).collect();
    let is_lower = |word: &str| word == word.to_ascii_lowercase();
    let is_upper = |word: &str| word == word.to_ascii_uppercase();
    let lower = keywords.iter().filter(|(w, _)| is_lower(w)).count();
    let upper = keywords.iter().filter(|(w, _)| is_upper(w)).count();
    let mostly_lower = lower > upper;
    for (word, span) in keywords {
        let fits = if mostly_lower { is_lower(word) } else { is_upper(word) };
        if !fits {
            let majority = if mostly_lower { "lowercase" } else { "uppercase" };
            let message = format!("Command '{word}' should match the case of the command majority ({majority})");
            problems.push(Diagnostic::warning(&CONSISTENT_INSTRUCTION_CASING, message, span));
        }
    }
}

fn keywords_of(stage: &Stage) -> impl Iterator<Item = (&str, Span)> {
    let inner = stage.instructions.iter().map(|i| (i.keyword.as_str(), i.span));
    std::iter::once((stage.keyword.as_str(), stage.span)).chain(inner)
}

fn names(stage: &Stage, problems: &mut Vec<Diagnostic>) {
    let (Some(name), Some(written)) = (&stage.from.name, &stage.from.written_name) else {
        return;
    };
    let mut warn = |rule, message: String| {
        problems.push(Diagnostic::warning(rule, message, stage.span));
    };
    if name != written {
        warn(&STAGE_NAME_CASING, format!("Stage name '{written}' should be lowercase"));
    }
    if matches!(name.as_str(), "scratch" | "context") {
        let message = format!("Stage name should not use the same name as reserved stage \"{name}\"");
        warn(&RESERVED_STAGE_NAME, message);
    }
    let Some(joint) = &stage.from.as_keyword else {
        return;
    };
    let same = |f: fn(&str) -> String| f(joint) == *joint && f(&stage.keyword) == stage.keyword;
    if !same(str::to_ascii_lowercase) && !same(str::to_ascii_uppercase) {
        let message = format!("'{joint}' and '{}' keywords' casing do not match", stage.keyword);
        warn(&FROM_AS_CASING, message);
    }
}
