//! `--call=outline`: what can be given to a target.

use super::{Location, SourceInfo, json, table};
use crate::lower::{Note, NoteKind, Purpose, description, walk};
use crate::{Diagnostic, Kind, Options, Parsed, Resolver, Severity, SourceFile};
use serde::Serialize;
use std::collections::BTreeSet;

/// A target and what it takes.
#[derive(Clone, Debug, Serialize)]
pub struct Outline {
    /// The target's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// From the comment above its FROM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Build arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<OutlineArgument>,
    /// Secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<OutlineNeed>,
    /// Agents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<OutlineNeed>,
    /// The Dockerfile.
    pub sources: Vec<SourceInfo>,
}

/// A build argument.
#[derive(Clone, Debug, Serialize)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// From the comment above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its value in this call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its ARG.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// A secret or agent.
#[derive(Clone, Debug, Serialize)]
pub struct OutlineNeed {
    /// Its id.
    pub name: String,
    /// The build fails without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// The RUN that first uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// Describes the target. Images that cannot be had are taken as empty.
///
/// # Errors
/// A Dockerfile that cannot be read or lowered.
pub fn outline(
    parsed: &Parsed,
    source: &SourceFile,
    options: &Options,
    resolver: &dyn Resolver,
) -> Result<Outline, Vec<Diagnostic>> {
    let is_error = |d: &&Diagnostic| d.severity == Severity::Error;
    let errors: Vec<_> = parsed.diagnostics.iter().filter(is_error).cloned().collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let lowered = walk(parsed, options, resolver, Purpose::Describe, &mut Vec::new())?;
    let Some((target, _)) = lowered.targets.into_iter().next() else {
        return Err(vec![Diagnostic::error("there is no target", None)]);
    };
    let find = |name: &str| {
        let mut stages = parsed.tree.stages.iter().rev();
        stages.find(|s| s.from.name.as_deref() == Some(name))
    };
    let stage = target.name.as_deref().and_then(find);
    let name = target.name.clone();
    let about = stage.zip(name.as_deref());
    Ok(Outline {
        description: about.and_then(|(s, n)| description(&s.comments, n)),
        name,
        args: arguments(parsed, source, &target.notes),
        secrets: needs(&target.notes, source, |k| match k {
            NoteKind::Secret { id, required } => Some((id, *required)),
            _ => None,
        }),
        ssh: needs(&target.notes, source, |k| match k {
            NoteKind::Ssh { id, required } => Some((id, *required)),
            _ => None,
        }),
        sources: vec![SourceInfo::of(source)],
    })
}

/// Each argument once; the definition nearest to the target counts.
fn arguments(parsed: &Parsed, source: &SourceFile, notes: &[Note]) -> Vec<OutlineArgument> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for note in notes.iter().rev() {
        let argument = match &note.kind {
            NoteKind::Argument { name, value, description } => Some(OutlineArgument {
                name: name.clone(),
                description: description.clone(),
                value: value.clone(),
                location: Some(Location::of(note.span, source)),
            }),
            NoteKind::Global { name, value } => global(parsed, source, name, value.as_deref()),
            _ => None,
        };
        if let Some(argument) = argument.filter(|a| seen.insert(a.name.clone())) {
            found.push(argument);
        }
    }
    found.reverse();
    found
}

/// A global ARG; the predefined ones are not shown.
fn global(parsed: &Parsed, source: &SourceFile, name: &str, value: Option<&str>) -> Option<OutlineArgument> {
    let declares = |kind: &Kind| match kind {
        Kind::Arg(list) => list.iter().any(|(n, _)| n == name),
        _ => false,
    };
    let instruction = parsed.tree.global_args.iter().rev().find(|i| declares(&i.kind))?;
    Some(OutlineArgument {
        name: name.to_owned(),
        description: description(&instruction.comments, name),
        value: value.map(str::to_owned),
        location: Some(Location::of(instruction.span, source)),
    })
}

fn needs<'n>(
    notes: &'n [Note],
    source: &SourceFile,
    pick: impl Fn(&'n NoteKind) -> Option<(&'n String, bool)>,
) -> Vec<OutlineNeed> {
    let mut found: Vec<OutlineNeed> = Vec::new();
    for note in notes {
        let Some((id, required)) = pick(&note.kind) else {
            continue;
        };
        match found.iter_mut().find(|n| n.name == *id) {
            Some(known) => known.required |= required,
            None => {
                found.push(OutlineNeed { name: id.clone(), required, location: Some(Location::of(note.span, source)) })
            }
        }
    }
    found
}

impl Outline {
    /// As JSON.
    pub fn json(&self) -> String {
        json(self)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let head = [("TARGET:", &self.name), ("DESCRIPTION:", &self.description)];
        let lines = head.iter().filter_map(|(title, text)| Some(vec![(*title).to_owned(), (*text).clone()?]));
        out.push_str(&table(&lines.collect::<Vec<_>>()));
        if !self.args.is_empty() {
            let head = ["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned).to_vec();
            let row = |a: &OutlineArgument| {
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                vec![a.name.clone(), text(&a.value), text(&a.description)]
            };
            section(&mut out, head, self.args.iter().map(row));
        }
        for (title, list) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            if list.is_empty() {
                continue;
            }
            let row = |n: &OutlineNeed| {
                let required = if n.required { "true" } else { "" };
                vec![n.name.clone(), required.to_owned()]
            };
            section(&mut out, vec![title.to_owned(), "REQUIRED".to_owned()], list.iter().map(row));
        }
        out
    }
}

fn section(out: &mut String, head: Vec<String>, rows: impl Iterator<Item = Vec<String>>) {
    if !out.is_empty() {
        out.push('\n');
    }
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    out.push_str(&table(&rows));
}
