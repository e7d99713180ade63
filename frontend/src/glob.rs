//! Wildcards of COPY and ADD: Go's `filepath.Match`. `*` and `?` do not match `/`; `[a-z]`, `[^a]`; `\` escapes.

/// One element of a pattern.
#[derive(Clone, Debug)]
pub(crate) enum Element {
    Is(char),
    Any,
    Star,
    Class(Box<Class>),
}

/// Characters between brackets. In a box, so that the elements of a long pattern stay small.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    negated: bool,
    ranges: Box<[(char, char)]>,
}

impl Element {
    /// Whether the element takes one character; `/` is only taken by itself.
    pub(crate) fn takes(&self, c: char) -> bool {
        match self {
            Self::Is(want) => *want == c,
            Self::Any | Self::Star => c != '/',
            Self::Class(class) => {
                let inside = class.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                c != '/' && inside != class.negated
            }
        }
    }
}

/// Whether a path has characters that make it a pattern.
pub fn contains_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Whether a pattern can be read.
pub fn glob_valid(pattern: &str) -> bool {
    compile(pattern).is_some()
}

/// Whether all of `name` fits `pattern`; a pattern that cannot be read fits nothing. Takes time `|pattern| × |name|` at most.
pub fn glob_match(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    compile(pattern).is_some_and(|elements| fits(&elements, &name))
}

/// Whether all of `name` is taken by `elements`.
pub(crate) fn fits(elements: &[Element], name: &[char]) -> bool {
    // Where to go on if what follows the last star did not fit: the star, and how far it reached.
    let mut retry: Option<(usize, usize)> = None;
    let (mut e, mut n) = (0, 0);
    loop {
        if e == elements.len() && n == name.len() {
            return true;
        }
        match elements.get(e) {
            Some(Element::Star) => {
                retry = Some((e, n));
                e += 1;
                continue;
            }
            Some(element) if name.get(n).is_some_and(|c| element.takes(*c)) => {
                e += 1;
                n += 1;
                continue;
            }
            _ => {}
        }
        match retry {
            Some((star, reached)) if name.get(reached).is_some_and(|c| *c != '/') => {
                retry = Some((star, reached + 1));
                e = star + 1;
                n = reached + 1;
            }
            _ => return false,
        }
    }
}

fn compile(pattern: &str) -> Option<Vec<Element>> {
    let mut elements = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        elements.push(match c {
            '*' if matches!(elements.last(), Some(Element::Star)) => continue,
            '*' => Element::Star,
            '?' => Element::Any,
            '\\' => Element::Is(chars.next()?),
            '[' => class(&mut chars)?,
            c => Element::Is(c),
        });
    }
    Some(elements)
}

/// Reads a class after its `[`; none if it cannot be read.
pub(crate) fn class(chars: &mut std::str::Chars<'_>) -> Option<Element> {
    let negated = chars.as_str().starts_with('^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    while ranges.is_empty() || !chars.as_str().starts_with(']') {
        let low = member(chars)?;
        let high = if chars.as_str().starts_with('-') {
            chars.next();
            member(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    chars.next();
    Some(Element::Class(Box::new(Class { negated, ranges: ranges.into() })))
}

/// One end of a range; `-` and `]` must be escaped.
fn member(chars: &mut std::str::Chars<'_>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_go() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a[^a]b", "a☺b", true),
            ("[a-ζ]*", "α", true),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("[-]", "-", false),
            ("[a", "a", false),
            ("**", "ab", true),
        ] {
            assert_eq!(glob_match(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn bad_patterns_are_known() {
        for bad in ["[", "[a", "[]a]", "[x-]", "a\\", "[^", "[^]", "[]", "[-]", "[a-", "[\\", "x[a-]y", "*[", "[a-b-c]"]
        {
            assert!(!glob_valid(bad), "{bad}");
        }
        assert!(contains_wildcards("a*") && !contains_wildcards("a\\*"));
    }
}
