//! `--name=value` of one instruction.

use super::go_bool;
use crate::Diagnostic;
use xbuild_graph::Span;

/// What a flag's value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Text,
    Many,
    Switch,
}

const COPY: &[(&str, Takes)] = &[
    ("from", Takes::Text),
    ("chown", Takes::Text),
    ("chmod", Takes::Text),
    ("link", Takes::Switch),
    ("parents", Takes::Switch),
    ("exclude", Takes::Many),
];
const ADD: &[(&str, Takes)] = &[
    ("chown", Takes::Text),
    ("chmod", Takes::Text),
    ("link", Takes::Switch),
    ("keep-git-dir", Takes::Switch),
    ("checksum", Takes::Text),
    ("exclude", Takes::Many),
    ("unpack", Takes::Switch),
];
const RUN: &[(&str, Takes)] = &[("mount", Takes::Many), ("network", Takes::Text), ("security", Takes::Text)];
const HEALTHCHECK: &[(&str, Takes)] = &[
    ("interval", Takes::Text),
    ("timeout", Takes::Text),
    ("start-period", Takes::Text),
    ("start-interval", Takes::Text),
    ("retries", Takes::Text),
];
const FROM: &[(&str, Takes)] = &[("platform", Takes::Text)];

fn known(instruction: &str) -> &'static [(&'static str, Takes)] {
    match instruction {
        "ADD" => ADD,
        "COPY" => COPY,
        "FROM" => FROM,
        "HEALTHCHECK" => HEALTHCHECK,
        "RUN" => RUN,
        _ => &[],
    }
}

/// The flags of one instruction, checked against those it knows.
#[derive(Debug, Default)]
pub(super) struct Flags {
    values: Vec<(&'static str, String)>,
}

impl Flags {
    /// Sorts `written` (without `--`) by name.
    pub(super) fn read(instruction: &str, written: &[String], span: Span) -> Result<Self, Diagnostic> {
        let mut flags = Self { values: Vec::new() };
        let known = known(instruction);
        for flag in written {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag.as_str(), None),
            };
            let Some((name, takes)) = known.iter().find(|(n, _)| *n == name) else {
                let message = format!("unknown flag: --{name} of {instruction}");
                let problem = Diagnostic::error(message, span);
                return Err(problem.suggest(name, known.iter().map(|(n, _)| *n)));
            };
            if *takes != Takes::Many && flags.has(name) {
                let message = format!("duplicate flag specified: --{name} of {instruction}");
                return Err(Diagnostic::error(message, span));
            }
            let value = match (takes, value) {
                (Takes::Switch, None) => "true",
                (_, Some(value)) => value,
                (_, None) => {
                    let message = format!("missing a value on flag: --{name} of {instruction}");
                    return Err(Diagnostic::error(message, span));
                }
            };
            if *takes == Takes::Switch && go_bool(value).is_none() {
                let message = format!("expecting boolean value for flag --{name}, not: `{value}`");
                return Err(Diagnostic::error(message, span));
            }
            flags.values.push((name, value.to_owned()));
        }
        Ok(flags)
    }

    fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// A text flag.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.all(name).pop()
    }

    /// A switch.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.text(name).and_then(|v| go_bool(&v))
    }

    /// A flag that may be repeated.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let values = self.values.iter().filter(|(n, _)| *n == name);
        values.map(|(_, v)| v.clone()).collect()
    }
}
