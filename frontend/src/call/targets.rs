//! `--call=targets`: the stages that can be built.

use super::{Location, SourceInfo, json, table};
use crate::lower::description;
use crate::{Parsed, SourceFile};
use serde::Serialize;

/// The stages of a Dockerfile.
#[derive(Clone, Debug, Serialize)]
pub struct Targets {
    /// In the order of the file.
    pub targets: Vec<Target>,
    /// The Dockerfile.
    pub sources: Vec<SourceInfo>,
}

/// One stage.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Its name in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It is built if no target is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// From the comment above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it stands on, as written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// `--platform`, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its FROM.
    pub location: Location,
}

/// Lists the stages.
pub fn targets(parsed: &Parsed, source: &SourceFile) -> Targets {
    let count = parsed.tree.stages.len();
    let target = |(number, stage): (usize, &crate::Stage)| Target {
        name: stage.from.name.clone(),
        default: number + 1 == count,
        description: stage.from.name.as_deref().and_then(|n| description(&stage.comments, n)),
        base: stage.from.image.clone(),
        platform: stage.from.platform.clone(),
        location: Location::of(stage.span, source),
    };
    Targets {
        targets: parsed.tree.stages.iter().enumerate().map(target).collect(),
        sources: vec![SourceInfo::of(source)],
    }
}

impl Targets {
    /// As JSON.
    pub fn json(&self) -> String {
        json(self)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
        for target in &self.targets {
            let name = match (&target.name, target.default) {
                (Some(name), true) => format!("{name} (default)"),
                (Some(name), false) => name.clone(),
                (None, true) => "(default)".to_owned(),
                (None, false) => continue,
            };
            rows.push(vec![name, target.description.clone().unwrap_or_default()]);
        }
        table(&rows)
    }
}
