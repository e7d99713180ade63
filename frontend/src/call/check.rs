//! `--call=check`: the findings of the build checks.

use super::{Location, SourceInfo, json};
use crate::diagnostic::excerpt;
use crate::lower::{Purpose, findings, lint_error, walk};
use crate::{Diagnostic, Options, Parsed, Resolver, Severity, SourceFile};
use serde::Serialize;
use xbuild_graph::Span;

/// What the checks found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckAnswer {
    /// The findings, in the order of the file.
    pub warnings: Vec<Violation>,
    /// The Dockerfile.
    pub sources: Vec<SourceInfo>,
    /// Why the Dockerfile cannot be built.
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    pub build_error: Option<BuildError>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Name of the check.
    pub rule_name: &'static str,
    /// What the check is about.
    pub description: &'static str,
    /// Page of the check.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub url: &'static str,
    /// What was found.
    pub detail: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    #[serde(skip)]
    span: Option<Span>,
}

/// An error that would stop the build.
#[derive(Clone, Debug, Serialize)]
pub struct BuildError {
    /// What is wrong.
    pub message: String,
    /// Where; none where no line is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    #[serde(skip)]
    span: Option<Span>,
}

/// Runs all checks on all stages. Images that cannot be had are taken as empty.
pub fn check(parsed: &Parsed, source: &SourceFile, options: &Options, resolver: &dyn Resolver) -> CheckAnswer {
    let checks = options.checks(parsed);
    let broken = parsed.diagnostics.iter().find(|d| d.severity == Severity::Error).cloned();
    let mut found = Vec::new();
    let mut error = broken.or_else(|| {
        let lowered = walk(parsed, options, resolver, Purpose::Check, &mut found);
        lowered.err().and_then(|errors| errors.into_iter().next())
    });
    let checks = checks.unwrap_or_else(|bad| {
        error.get_or_insert(bad);
        crate::CheckOptions::default()
    });
    let warnings = findings(parsed, &checks, found);
    if checks.error && !warnings.is_empty() {
        error.get_or_insert_with(|| lint_error(&warnings));
    }
    CheckAnswer {
        warnings: warnings.into_iter().filter_map(|w| violation(w, source)).collect(),
        sources: vec![SourceInfo::of(source)],
        build_error: error.map(|e| BuildError {
            message: e.text(),
            location: e.at.map(|at| Location::of(at, source)),
            span: e.at,
        }),
    }
}

fn violation(warning: Diagnostic, source: &SourceFile) -> Option<Violation> {
    let rule = warning.rule?;
    Some(Violation {
        rule_name: rule.name,
        description: rule.description,
        url: rule.url,
        detail: warning.text(),
        location: warning.at.map(|at| Location::of(at, source)),
        span: warning.at,
    })
}

impl CheckAnswer {
    /// Exit code of the command: 1 as soon as there is a finding or an error.
    pub fn exit_code(&self) -> i32 {
        i32::from(!self.warnings.is_empty() || self.build_error.is_some())
    }

    /// As JSON.
    pub fn json(&self) -> String {
        json(self)
    }

    /// For people.
    pub fn text(&self, source: &SourceFile) -> String {
        let mut out = match self.warnings.len() {
            0 if self.build_error.is_some() => String::new(),
            0 => "Check complete, no warnings found.\n".to_owned(),
            1 => "Check complete, 1 warning has been found!\n".to_owned(),
            n => format!("Check complete, {n} warnings have been found!\n"),
        };
        for warning in &self.warnings {
            let page = if warning.url.is_empty() { "" } else { " - " };
            out.push_str(&format!("\nWARNING: {}{page}{}\n{}\n", warning.rule_name, warning.url, warning.detail));
            if let Some(span) = warning.span {
                out.push_str(&excerpt(span, source));
            }
        }
        if let Some(error) = &self.build_error {
            out.push_str(&format!("\nERROR: {}\n", error.message));
            if let Some(span) = error.span {
                out.push_str(&excerpt(span, source));
            }
        }
        out
    }
}
