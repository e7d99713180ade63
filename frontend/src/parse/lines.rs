//! Physical lines → directives and logical lines with their heredocs.

use super::lexical::{self, Mark};
use super::{Directives, Heredoc};
use crate::source::{MAX_INSTRUCTIONS, MAX_LINE, MAX_SOURCE};
use crate::{CheckOptions, Diagnostic, SourceFile};
use xbuild_graph::Span;

/// One instruction's text, continuations joined.
#[derive(Debug)]
pub(crate) struct Logical {
    pub(crate) text: String,
    pub(crate) span: Span,
    pub(crate) comments: Vec<String>,
    pub(crate) heredocs: Vec<Heredoc>,
    /// Last line, if there was an empty line among the continuations.
    pub(crate) blank_continuation: Option<Span>,
}

/// What the lines of a file say.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) directives: Directives,
    pub(crate) logical: Vec<Logical>,
    pub(crate) problems: Vec<Diagnostic>,
}

/// Reads all lines.
pub(crate) fn read(source: &SourceFile) -> Lines {
    let mut lines = Lines::default();
    if source.bytes().len() > MAX_SOURCE {
        let message = format!("the Dockerfile has more than {MAX_SOURCE} bytes");
        lines.problems.push(Diagnostic::error(message, None));
        return lines;
    }
    let mut reader = Reader { source, next: 1, top: 0, out: lines };
    reader.directives();
    while reader.instruction() {
        if let Some(last) = reader.out.logical.get(MAX_INSTRUCTIONS) {
            let message = format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions");
            let problem = Diagnostic::error(message, last.span);
            reader.out.problems.push(problem);
            break;
        }
    }
    reader.out
}

struct Reader<'a> {
    source: &'a SourceFile,
    next: usize,
    /// How many lines at the top are directives.
    top: usize,
    out: Lines,
}

/// A physical line.
struct Line<'a> {
    bytes: &'a [u8],
    span: Span,
}

impl Line<'_> {
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(self.bytes);
        text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t)).unwrap_or(&text).to_owned()
    }
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<Line<'a>> {
        let span = (self.next <= self.source.line_count()).then(|| self.source.line_span(self.next))?;
        let mut bytes = &self.source.bytes()[span.start..span.end];
        if self.next == 1 {
            bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        }
        Some(Line { bytes, span })
    }

    fn take(&mut self) -> Option<Line<'a>> {
        let line = self.peek()?;
        self.next += 1;
        if line.bytes.len() > MAX_LINE {
            let message = format!("line {} has more than {MAX_LINE} bytes", self.next - 1);
            self.out.problems.push(Diagnostic::error(message, line.span));
            self.next = usize::MAX;
            return None;
        }
        Some(line)
    }

    fn error(&mut self, message: impl Into<String>, at: Span) {
        self.out.problems.push(Diagnostic::error(message, at));
    }

    /// Reads directives without consuming their lines, which are comments to everything else.
    fn directives(&mut self) {
        let mut seen: Vec<String> = Vec::new();
        let count = self.source.line_count();
        for number in 1..=count {
            let span = self.source.line_span(number);
            let text = self.source.line_text(number);
            let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { &text };
            let Some((name, value)) = lexical::directive(text.trim_start()) else {
                return;
            };
            if !matches!(name.as_str(), "syntax" | "escape" | "check") {
                return;
            }
            self.top = number;
            if seen.contains(&name) {
                self.error(format!("only one `{name}` parser directive can be used"), span);
                continue;
            }
            self.apply(&name, value, span);
            seen.push(name);
        }
    }

    fn apply(&mut self, name: &str, value: &str, span: Span) {
        match (name, value) {
            ("syntax", _) => self.out.directives.syntax = Some(value.to_owned()),
            ("escape", "\\" | "`") => self.out.directives.escape = value.chars().next().unwrap_or('\\'),
            ("escape", _) => self.error(format!("invalid ESCAPE `{value}`: the escape directive takes \\ or `"), span),
            _ => match CheckOptions::parse(value) {
                Ok(options) => self.out.directives.check = options,
                Err(message) => self.error(message, span),
            },
        }
    }

    /// Reads the next logical line; false at the end of the file.
    fn instruction(&mut self) -> bool {
        let mut comments = Vec::new();
        loop {
            let Some(line) = self.take() else {
                return false;
            };
            let text = line.text();
            let trimmed = text.trim_start();
            if let Some(comment) = trimmed.strip_prefix('#') {
                if self.next - 1 > self.top {
                    comments.push(comment.trim().to_owned());
                }
            } else if !trimmed.is_empty() {
                self.joined(trimmed, line.span, comments);
                return true;
            }
        }
    }

    fn joined(&mut self, first: &str, mut span: Span, comments: Vec<String>) {
        let escape = self.out.directives.escape;
        let (start, mut continues) = continuation(first, escape);
        let mut text = start.to_owned();
        let mut blank = false;
        while continues {
            let Some(line) = self.take() else { break };
            span.end = line.span.end;
            let more = line.text();
            let trimmed = more.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                blank = true;
                continue;
            }
            let (part, goes_on) = continuation(&more, escape);
            text.push_str(part);
            continues = goes_on;
        }
        let last = self.source.line_span(self.next.min(self.source.line_count() + 1).saturating_sub(1).max(1));
        let blank_continuation = blank.then_some(last);
        let text = text.trim().to_owned();
        if text.is_empty() {
            return;
        }
        let heredocs = self.heredocs(&text, &mut span);
        self.out.logical.push(Logical { text, span, comments, heredocs, blank_continuation });
    }

    fn heredocs(&mut self, text: &str, span: &mut Span) -> Vec<Heredoc> {
        if !takes_heredocs(text) {
            return Vec::new();
        }
        let marks = lexical::heredoc_marks(text);
        let mut found = Vec::with_capacity(marks.len());
        for mark in marks {
            match self.body(&mark, span) {
                Some(data) => found.push(Heredoc { name: mark.name, expand: mark.expand, chomp: mark.chomp, data }),
                None => {
                    self.error(format!("unterminated heredoc `{}`", mark.name), *span);
                    break;
                }
            }
        }
        found
    }

    fn body(&mut self, mark: &Mark, span: &mut Span) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        while let Some(line) = self.take() {
            span.end = line.span.end;
            let text = line.text();
            let candidate = if mark.chomp { text.trim_start_matches('\t') } else { &text };
            if candidate == mark.name {
                return Some(data);
            }
            data.extend_from_slice(line.bytes);
        }
        None
    }
}

/// Instructions that may open heredocs, also as ONBUILD triggers.
fn takes_heredocs(text: &str) -> bool {
    let (word, after) = lexical::keyword(text);
    match word.to_ascii_uppercase().as_str() {
        "RUN" | "COPY" | "ADD" => true,
        "ONBUILD" => {
            let inner = lexical::keyword(after).0.to_ascii_uppercase();
            matches!(inner.as_str(), "RUN" | "COPY" | "ADD")
        }
        _ => false,
    }
}

/// Cuts an escape character at the end of a line, and says whether there was one. A doubled one does not continue.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t', '\r', '\n']);
    match trimmed.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}
