//! Answers to `--call`: what a Dockerfile says, without building it. The JSON forms are BuildKit's.

mod check;
mod outline;
mod targets;

pub use check::{BuildError, CheckAnswer, Violation, check};
pub use outline::{Outline, OutlineArgument, OutlineNeed, outline};
pub use targets::{Target, Targets, targets};

use crate::SourceFile;
use serde::Serialize;
use xbuild_graph::Span;

/// Lines of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Location {
    /// The lines.
    pub ranges: Vec<Range>,
}

/// From a line to a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The first line.
    pub start: Position,
    /// The last line.
    pub end: Position,
}

/// A line, counted from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
}

impl Location {
    /// The lines of a span.
    pub(crate) fn of(span: Span, source: &SourceFile) -> Self {
        let (first, last) = source.lines_of(span);
        let start = Position { line: first };
        let end = Position { line: last };
        Self { ranges: vec![Range { start, end }] }
    }
}

/// The Dockerfile itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceInfo {
    /// Its name.
    pub filename: String,
    /// `Dockerfile`.
    pub language: &'static str,
    /// Its bytes in base64.
    pub data: String,
}

impl SourceInfo {
    fn of(source: &SourceFile) -> Self {
        Self { filename: source.name().to_owned(), language: "Dockerfile", data: base64(source.bytes()) }
    }
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            match digit <= chunk.len() {
                true => out.push(char::from(DIGITS[(group >> (18 - 6 * digit)) as usize & 63])),
                false => out.push('='),
            }
        }
    }
    out
}

/// Indented JSON with a newline.
fn json<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists of them always have a JSON form.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Columns, three blanks apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column));
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
