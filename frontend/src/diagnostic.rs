//! Problems as data: what is wrong, where, and what might be meant. Rendering happens late.

use crate::{Rule, SourceFile, brief};
use std::fmt::Write;
use xbuild_graph::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The build cannot go on.
    Error,
    /// A check's finding; the build goes on.
    Warning,
}

/// A replacement for a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// What is there.
    pub from: String,
    /// What might be meant.
    pub to: String,
}

/// One problem of a Dockerfile.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// The check that found it; none for hard errors.
    pub rule: Option<&'static Rule>,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in a sentence.
    pub message: String,
    /// Where; none where no line is to blame (an unknown `--target`).
    pub at: Option<Span>,
    /// Other places that matter.
    pub labels: Vec<(Span, String)>,
    /// What might be meant.
    pub suggestion: Option<Box<Edit>>,
}

impl Diagnostic {
    /// An error at `at`. Long values in the message are shortened.
    pub fn error(message: impl Into<String>, at: impl Into<Option<Span>>) -> Self {
        Self {
            rule: None,
            severity: Severity::Error,
            message: brief::message(message.into()),
            at: at.into(),
            labels: Vec::new(),
            suggestion: None,
        }
    }

    /// A finding of `rule` at `at`. Long values in the message are shortened.
    pub(crate) fn warning(rule: &'static Rule, message: impl Into<String>, at: Span) -> Self {
        Self {
            rule: Some(rule),
            severity: Severity::Warning,
            message: brief::message(message.into()),
            at: Some(at),
            labels: Vec::new(),
            suggestion: None,
        }
    }

    /// Adds the nearest of `options` to `word`, if one is near.
    pub(crate) fn suggest<'a>(mut self, word: &str, options: impl IntoIterator<Item = &'a str>) -> Self {
        if let Some(to) = crate::suggest::nearest(word, options) {
            let from = word.to_owned();
            self.suggestion = Some(Box::new(Edit { from, to }));
        }
        self
    }

    /// Message with the suggestion in parentheses.
    pub fn text(&self) -> String {
        match &self.suggestion {
            Some(edit) => format!("{} (did you mean {}?)", self.message, edit.to),
            None => self.message.clone(),
        }
    }
}

/// Renders a diagnostic without colour: place, message, and the excerpt with `>>>` before the lines in question.
pub fn render_plain(diagnostic: &Diagnostic, source: &SourceFile) -> String {
    let mut out = String::new();
    let kind = match (diagnostic.severity, diagnostic.rule) {
        (Severity::Error, _) => "error".to_owned(),
        (Severity::Warning, Some(rule)) => format!("warning: {}", rule.name),
        (Severity::Warning, None) => "warning".to_owned(),
    };
    let text = diagnostic.text();
    match diagnostic.at {
        Some(span) => {
            let (line, column) = source.position(span.start);
            let _ = writeln!(out, "{}:{line}:{column}: {kind}: {text}", source.name());
        }
        None => {
            let _ = writeln!(out, "{kind}: {text}");
        }
    }
    if let Some(span) = diagnostic.at {
        out.push_str(&excerpt(span, source));
    }
    for (span, label) in &diagnostic.labels {
        let (line, column) = source.position(span.start);
        let _ = writeln!(out, "{}:{line}:{column}: {label}", source.name());
    }
    out
}

/// The lines around a span, BuildKit's way; of long lines the beginning.
pub fn excerpt(span: Span, source: &SourceFile) -> String {
    const RULER: &str = "--------------------";
    const MOST: usize = 40;
    const LONGEST: usize = 400;
    let (first, last) = source.lines_of(span);
    let room = if first == last { 2 } else { 1 };
    let from = first.saturating_sub(room).max(1);
    let to = (last + room).min(source.line_count()).min(first + MOST);
    let mut out = format!("{}:{first}\n{RULER}\n", source.name());
    for line in from..=to {
        let mark = if (first..=last).contains(&line) { ">>>" } else { "   " };
        let text = source.line_text(line);
        let _ = writeln!(out, "{line:>4} | {mark} {}", brief::cut(&text, LONGEST));
    }
    out.push_str(RULER);
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_rendering_marks_the_lines() {
        let source = SourceFile::new("Dockerfile", "FROM x\nRUN a\nRUN b\nRUN c\n");
        let problem = Diagnostic::error("no", Span { start: 7, end: 12 });
        let want = "Dockerfile:2:1: error: no\nDockerfile:2\n--------------------\n   1 |     FROM x\n   2 | >>> RUN a\n   3 |     RUN b\n   4 |     RUN c\n--------------------\n";
        assert_eq!(render_plain(&problem, &source), want);
    }

    #[test]
    fn long_values_and_lines_are_cut() {
        let source = SourceFile::new("Dockerfile", format!("FROM {}\n", "x".repeat(1 << 20)));
        let span = Span { start: 0, end: source.bytes().len() };
        let problem = Diagnostic::error(format!("`{}` is no name", "y".repeat(1 << 20)), span);
        let shown = render_plain(&problem, &source);
        assert!(shown.contains(&format!(">>> FROM {}…\n", "x".repeat(395))), "{shown}");
        assert!(shown.contains("y… (1048576 bytes)` is no name\n"), "{shown}");
        assert!(shown.len() < 1000, "{}", shown.len());
    }
}
