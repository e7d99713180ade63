//! A Dockerfile as it came: bytes with a name, and where its lines are.

use xbuild_graph::Span;

/// Largest Dockerfile that is read, in bytes.
pub const MAX_SOURCE: usize = 16 << 20;

/// Most instructions of a Dockerfile: each takes a thousand times its bytes in memory.
pub(crate) const MAX_INSTRUCTIONS: usize = 50_000;
/// Longest physical line, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// A Dockerfile's name and content.
#[derive(Clone, Debug)]
pub struct SourceFile {
    name: String,
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl SourceFile {
    /// Keeps `bytes` under the name that messages show (`Dockerfile`).
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let after_newline = |(at, _): (usize, &u8)| at + 1;
        let starts = std::iter::once(0)
            .chain(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(after_newline))
            .collect();
        Self { name: name.into(), bytes, starts }
    }

    /// The name that messages show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content, unchanged.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Line (from 1) and column (from 1, in characters) of a byte.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let at = at.min(self.bytes.len());
        let line = self.starts.partition_point(|&start| start <= at);
        let start = self.starts[line - 1];
        let column = String::from_utf8_lossy(&self.bytes[start..at]).chars().count();
        (line, column + 1)
    }

    /// First and last line (from 1) that a span touches.
    pub fn lines_of(&self, span: Span) -> (usize, usize) {
        let (first, _) = self.position(span.start);
        let last = span.end.saturating_sub(1).max(span.start);
        (first, self.position(last).0)
    }

    /// Number of lines, an unfinished one included.
    pub fn line_count(&self) -> usize {
        match self.starts.last() {
            Some(&last) if last == self.bytes.len() && last > 0 => self.starts.len() - 1,
            _ => self.starts.len(),
        }
    }

    /// Bytes of a line (from 1), its newline included.
    pub fn line_span(&self, line: usize) -> Span {
        let start = self.starts.get(line - 1).copied();
        let end = self.starts.get(line).copied();
        Span { start: start.unwrap_or(self.bytes.len()), end: end.unwrap_or(self.bytes.len()) }
    }

    /// Text of a line (from 1), without its newline.
    pub fn line_text(&self, line: usize) -> String {
        let span = self.line_span(line);
        let text = String::from_utf8_lossy(&self.bytes[span.start..span.end]);
        text.trim_end_matches(['\n', '\r']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one() {
        let source = SourceFile::new("Dockerfile", "ab\nçd\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(2), (1, 3));
        assert_eq!(source.position(5), (2, 2));
        assert_eq!(source.line_count(), 2);
        assert_eq!(source.line_text(2), "çd");
        assert_eq!(source.lines_of(Span { start: 0, end: 7 }), (1, 2));
        assert_eq!(SourceFile::new("x", "").line_count(), 1);
    }
}
