use super::*;

fn matcher(patterns: &[&str]) -> Matcher {
    let owned: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
    Matcher::new(&owned).unwrap()
}

#[test]
fn lines_are_cleaned() {
    let text = b"\xef\xbb\xbf# no\r\n/a/\r\n\r\n  b/../c \r\n! /d\r\n #x\r\n.\r\n";
    assert_eq!(parse(text).unwrap(), ["a", "c", "!d", "#x", "."]);
    assert!(parse(b"[a-\n").is_err());
    assert!(parse(b"!\n").is_err());
}

#[test]
fn paths_are_excluded() {
    for (patterns, path, want) in [
        (&["a"][..], "a", true),
        (&["a"], "a/b/c", true),
        (&["a"], "b/a", false),
        (&["*/a"], "b/a", true),
        (&["*/a"], "b/c/a", false),
        (&["**/a"], "a", true),
        (&["**/a"], "b/c/a/d", true),
        (&["**/*.go"], "x/y.go", true),
        (&["a/**"], "a", false),
        (&["a/**"], "a/b", true),
        (&["a/**/b"], "a/b", true),
        (&["a/**/b"], "a/x/y/b", true),
        (&["**"], "x", true),
        (&["**", "!x"], "x", false),
        (&["**", "!x"], "x/y", false),
        (&["*", "!a/b"], "a/b", false),
        (&["*", "!a/b"], "a/c", true),
        (&["*.md", "!R*.md", "RA.md"], "RA.md", true),
        (&["*.md", "!R*.md"], "R.md", false),
        (&["a**b"], "a/x/b", true),
        (&["a**b"], "ab", true),
        (&["a**/c"], "a1/b/c", true),
        (&["/a"], "a", false),
        (&["[a-c]?"], "bz", true),
        (&["\\*"], "x", false),
        (&["\\*"], "*", true),
        (&["é"], "é", true),
    ] {
        assert_eq!(matcher(patterns).excluded(path), want, "{patterns:?} {path}");
    }
}

#[test]
fn walks_know_what_to_skip() {
    let m = matcher(&["*", "!a/b/*.txt"]);
    assert!(m.may_hold_exceptions("a") && m.may_hold_exceptions("a/b"));
    assert!(!m.may_hold_exceptions("c") && !m.may_hold_exceptions("a/c"));
    assert!(matcher(&["*", "!**/x"]).may_hold_exceptions("any/where"));
}

#[test]
fn many_stars_do_not_explode() {
    let m = matcher(&["*a*a*a*a*a*a*a*a*a*b", "**/**/**/**/**/**/**/**/z", "a**a**a**a**a**b"]);
    assert!(!m.excluded(&"a".repeat(3000)));
    assert!(!m.excluded(&"a/".repeat(300)));
}

/// The plain reading of the rules, exponential and obvious.
fn naive(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', '*', '/', rest @ ..] => {
            naive(rest, text) || (0..text.len()).any(|i| text[i] == '/' && naive(rest, &text[i + 1..]))
        }
        ['*', '*'] => !text.is_empty(),
        ['*', rest @ ..] => {
            (0..=text.len()).take_while(|&i| !text[..i].contains(&'/')).any(|i| naive(rest, &text[i..]))
        }
        [c, rest @ ..] => text.first() == Some(c) && naive(rest, &text[1..]),
    }
}

proptest::proptest! {
    #[test]
    fn agrees_with_the_plain_reading(parts in proptest::collection::vec("(a|b|\\*|a\\*|\\*\\*)", 1..5), path in "[ab]{1,2}(/[ab]{1,2}){0,3}") {
        let pattern = parts.join("/");
        let chars: Vec<char> = pattern.chars().collect();
        let names: Vec<&str> = path.split('/').collect();
        let want = (1..=names.len()).any(|n| naive(&chars, &names[..n].join("/").chars().collect::<Vec<_>>()));
        proptest::prop_assert_eq!(matcher(&[&pattern]).excluded(&path), want, "{} {}", pattern, path);
    }
}
