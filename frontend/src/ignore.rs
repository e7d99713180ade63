//! `.dockerignore`: patterns that leave paths out of a build context.
//!
//! Patterns are tried in order and the last that fits decides; `!` takes back in. A pattern that fits a directory fits all
//! below it. Matching takes time `patterns × |path| × |pattern|` at most, never exponential.

use crate::brief;
use crate::glob::{Element, class, fits};

/// Longest pattern of a `.dockerignore`, in bytes.
const MAX_PATTERN: usize = 64 << 10;
/// Most patterns of a `.dockerignore`: every path of the context is tried with each.
const MAX_PATTERNS: usize = 100_000;
/// Most bytes of all patterns together.
const MAX_TOTAL: usize = 8 << 20;

/// Why patterns are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A pattern cannot be read.
    #[error("syntax error in pattern `{pattern}`")]
    Syntax {
        /// The beginning of the pattern.
        pattern: String,
    },
    /// A line of a `.dockerignore` has an error.
    #[error(".dockerignore:{line}: {why}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads the lines of a `.dockerignore`: comments and empty lines left out, paths cleaned, `!` kept in front.
///
/// # Errors
/// A pattern that cannot be read or has more than 64 KiB; more than 100 000 patterns, or 8 MiB of them.
pub fn parse(bytes: &[u8]) -> Result<Vec<String>, IgnoreError> {
    let text = String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    let mut patterns = Vec::new();
    let mut total = 0;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let line = line.trim();
        total += line.len();
        let pattern = within_bounds(line, patterns.len(), total).and_then(|()| read_line(line));
        patterns.push(pattern.map_err(|why| IgnoreError::Line { line: number + 1, why })?);
    }
    Ok(patterns)
}

/// Refuses a pattern after `count` others that is too much; `total` are the bytes of all.
fn within_bounds(line: &str, count: usize, total: usize) -> Result<(), String> {
    if line.len() > MAX_PATTERN {
        return Err(format!("the pattern has {} bytes, more than {MAX_PATTERN}", line.len()));
    }
    if count >= MAX_PATTERNS {
        return Err(format!("there are more than {MAX_PATTERNS} patterns"));
    }
    match total > MAX_TOTAL {
        true => Err(format!("the patterns have more than {MAX_TOTAL} bytes together")),
        false => Ok(()),
    }
}

/// The pattern of a line that is neither empty nor a comment.
fn read_line(line: &str) -> Result<String, String> {
    let (mark, path) = match line.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", line),
    };
    let mut clean = if path.is_empty() { String::new() } else { clean(path) };
    if clean.len() > 1 && clean.starts_with('/') {
        clean.remove(0);
    }
    let pattern = format!("{mark}{clean}");
    Matcher::new(std::slice::from_ref(&pattern)).map_err(|e| e.to_string())?;
    Ok(pattern)
}

/// The shortest equal path: no `.`, no inner `..`, no doubled slashes.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// A part of a pattern between slashes.
#[derive(Clone, Debug)]
enum Component {
    /// `**` alone: any number of directories.
    Deep,
    /// Fits the component that is equal.
    Text(Box<str>),
    /// Fits one component of a path.
    One(Box<[Element]>),
    /// Has `**` beside other characters, which none stands for, so it may reach over slashes.
    Wide(Box<[Option<Element>]>),
}

#[derive(Clone, Debug)]
struct Pattern {
    exclusion: bool,
    components: Box<[Component]>,
}

/// Patterns, ready for matching.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

impl Matcher {
    /// Prepares patterns as [`parse`] gives them.
    ///
    /// # Errors
    /// A pattern that cannot be read.
    pub fn new(patterns: &[String]) -> Result<Self, IgnoreError> {
        let written = patterns.iter().map(|p| p.trim()).filter(|p| !p.is_empty());
        Ok(Self { patterns: written.map(Pattern::new).collect::<Result<_, _>>()? })
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path (relative, slash-separated) is left out, by itself or because of a directory above it.
    pub fn excluded(&self, path: &str) -> bool {
        let path = path.trim_matches('/');
        let parts: Vec<Vec<char>> = path.split('/').map(|p| p.chars().collect()).collect();
        let mut excluded = false;
        for pattern in &self.patterns {
            if pattern.exclusion == excluded && pattern.fits_or_above(&parts) {
                excluded = !pattern.exclusion;
            }
        }
        excluded
    }

    /// Whether a walk must look into an excluded directory, because a `!` pattern may take something below it back in.
    pub fn may_hold_exceptions(&self, directory: &str) -> bool {
        let directory = directory.trim_matches('/');
        let parts: Vec<Vec<char>> = directory.split('/').map(|p| p.chars().collect()).collect();
        self.patterns.iter().any(|p| p.exclusion && p.reaches_below(&parts))
    }
}

impl Pattern {
    /// Reads a pattern, with `!` in front of an exception.
    fn new(written: &str) -> Result<Self, IgnoreError> {
        let fail = || IgnoreError::Syntax { pattern: brief::value(written).into_owned() };
        let (exclusion, text) = match written.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, written),
        };
        if text.is_empty() {
            return Err(fail());
        }
        let components = clean(text).split('/').map(component).collect::<Option<_>>();
        Ok(Self { exclusion, components: components.ok_or_else(fail)? })
    }

    /// Whether the pattern fits the path or one of the directories above it.
    fn fits_or_above(&self, parts: &[Vec<char>]) -> bool {
        if self.has_wide() {
            return self.fits_wide(parts);
        }
        let states = self.states(parts);
        let done = self.components.len();
        (1..=parts.len()).any(|n| states[n][done])
    }

    fn has_wide(&self) -> bool {
        self.components.iter().any(|c| matches!(c, Component::Wide(_)))
    }

    /// `states[n][k]`: the first `n` parts can be taken by the first `k` components.
    fn states(&self, parts: &[Vec<char>]) -> Vec<Vec<bool>> {
        let count = self.components.len();
        let mut states = vec![vec![false; count + 1]; parts.len() + 1];
        states[0][0] = true;
        for n in 0..=parts.len() {
            for k in 0..count {
                if !states[n][k] {
                    continue;
                }
                match &self.components[k] {
                    // A last `**` needs something to fit: `a/**` is not `a`.
                    Component::Deep if k + 1 == count => {
                        for later in states.iter_mut().skip(n + 1) {
                            later[count] = true;
                        }
                    }
                    Component::Deep => {
                        states[n][k + 1] = true;
                        if n < parts.len() {
                            states[n + 1][k] = true;
                        }
                    }
                    Component::Text(text) => {
                        if n < parts.len() && text.chars().eq(parts[n].iter().copied()) {
                            states[n + 1][k + 1] = true;
                        }
                    }
                    Component::One(elements) => {
                        if n < parts.len() && fits(elements, &parts[n]) {
                            states[n + 1][k + 1] = true;
                        }
                    }
                    Component::Wide(_) => {}
                }
            }
        }
        states
    }

    /// Matching of all characters at once, for patterns with `**` inside a component: of the path or a directory above it.
    fn fits_wide(&self, parts: &[Vec<char>]) -> bool {
        let text: Vec<char> = parts.join(&'/');
        let mut now = vec![false; text.len() + 1];
        now[0] = true;
        let count = self.components.len();
        for (k, component) in self.components.iter().enumerate() {
            let last = k + 1 == count;
            now = match component {
                Component::Deep => deep(&now, &text, last),
                Component::Text(same) => same.chars().fold(now, |n, c| step(&n, &text, &Element::Is(c))),
                Component::One(elements) => elements.iter().fold(now, |n, e| step(&n, &text, e)),
                Component::Wide(elements) => self.wide(elements, k, now, &text),
            };
            let takes_slash =
                matches!(component, Component::Wide(elements) if elements.last().is_some_and(Option::is_none));
            if !last && !takes_slash && !matches!(component, Component::Deep) {
                now = step(&now, &text, &Element::Is('/'));
            }
        }
        (1..=text.len()).any(|at| now[at] && text.get(at).is_none_or(|c| *c == '/'))
    }

    /// Positions after a component with `**` in it. That stands for anything at the end of a pattern, and at the beginning of
    /// one that is plain text otherwise; elsewhere for any number of directories, as in BuildKit.
    fn wide(&self, elements: &[Option<Element>], k: usize, now: Vec<bool>, text: &[char]) -> Vec<bool> {
        let last = k + 1 == self.components.len();
        elements.iter().enumerate().fold(now, |now, (at, element)| match element {
            Some(element) => step(&now, text, element),
            None if last && at + 1 == elements.len() => anything(&now),
            None if k == 0 && at == 0 && self.is_plain_behind_the_first() => anything(&now),
            None => deep(&now, text, false),
        })
    }

    fn is_plain_behind_the_first(&self) -> bool {
        let is_plain = |element: &Option<Element>| matches!(element, Some(Element::Is(_)));
        let mut components = self.components.iter();
        let first = match components.next() {
            Some(Component::Wide(elements)) => elements.iter().skip(1).all(is_plain),
            _ => false,
        };
        first && components.all(|component| matches!(component, Component::Text(_)))
    }

    /// Whether some path below `parts` may fit.
    fn reaches_below(&self, parts: &[Vec<char>]) -> bool {
        if self.has_wide() {
            return true;
        }
        let states = self.states(parts);
        // Not at its end: more components can fit deeper parts. At its end: the pattern fits all below as a parent.
        states[parts.len()].iter().any(|reached| *reached) || self.fits_or_above(parts)
    }
}

/// Positions after `**/`: the same, or after any slash further on. A last `**` takes all the rest.
fn deep(now: &[bool], text: &[char], last: bool) -> Vec<bool> {
    let mut next = vec![false; now.len()];
    let mut open = false;
    for at in 0..now.len() {
        let after_slash = at > 0 && text[at - 1] == '/';
        next[at] = match last {
            true => open,
            false => now[at] || (open && after_slash),
        };
        open |= now[at];
    }
    next
}

/// Positions after anything, also slashes.
fn anything(now: &[bool]) -> Vec<bool> {
    let first = now.iter().position(|reached| *reached).unwrap_or(now.len());
    (0..now.len()).map(|at| at >= first).collect()
}

/// Positions after one element.
fn step(now: &[bool], text: &[char], element: &Element) -> Vec<bool> {
    let mut next = vec![false; now.len()];
    for at in 0..now.len() {
        let before = at.checked_sub(1);
        next[at] = match element {
            Element::Star => now[at] || before.is_some_and(|b| next[b] && text[b] != '/'),
            element => before.is_some_and(|b| now[b] && element.takes(text[b])),
        };
    }
    next
}

/// Reads a component; none if it cannot be read.
fn component(text: &str) -> Option<Component> {
    if !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(|b| b == b'*') {
        return Some(Component::Deep);
    }
    let mut elements = Vec::new();
    let mut chars = text.chars();
    let mut wide = false;
    while let Some(c) = chars.next() {
        elements.push(match c {
            '*' if chars.as_str().starts_with('*') => {
                chars.next();
                wide = true;
                None
            }
            '*' => Some(Element::Star),
            '?' => Some(Element::Any),
            '\\' => Some(Element::Is(chars.next()?)),
            '[' => Some(class(&mut chars)?),
            c => Some(Element::Is(c)),
        });
    }
    if wide {
        return Some(Component::Wide(elements.into()));
    }
    let character = |element: &Option<Element>| match element {
        Some(Element::Is(c)) => Some(*c),
        _ => None,
    };
    Some(match elements.iter().map(character).collect::<Option<String>>() {
        Some(text) => Component::Text(text.into()),
        None => Component::One(elements.into_iter().flatten().collect()),
    })
}

#[cfg(test)]
mod tests;
