use super::*;

fn matcher(patterns: &[&str]) -> Matcher {
    let owned: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
    Matcher::new(&owned).unwrap()
}

#[test]
fn lines_are_cleaned() {
    let text = b"\xef\xbb\xbf# no\r\n/a/\r\n\r\n  b/../c \r\n! /d\r\n #x\r\n.\r\n";
    assert_eq!(parse(text).unwrap(), ["a", "c", "!d", "#x", "."]);
    assert_eq!(parse(b"x\n[a-\n").unwrap_err().to_string(), ".dockerignore:2: syntax error in pattern `[a-`");
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
        (&["a**b"], "axb", false),
        (&["a**"], "axb/c", true),
        (&["a**/b"], "ab", true),
        (&["a**/b"], "a/x/b", true),
        (&["**.md"], "d/e/f.md", true),
        (&["**.m?"], "d/e/f.md", false),
        (&["d/**.md"], "d/e/f.md", false),
        (&["d/**.md"], "d/e/.md", true),
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

#[test]
fn patterns_are_bounded() {
    let fails = |text: String| parse(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(parse("a\n".repeat(100_000).as_bytes()).unwrap().len(), 100_000);
    assert_eq!(
        fails("#\n".to_owned() + &"a\n".repeat(100_001)),
        ".dockerignore:100002: there are more than 100000 patterns"
    );
    assert_eq!(parse(&[b'a'; 65_536]).unwrap().len(), 1);
    assert_eq!(
        fails(format!("b\n{}\n", "a".repeat(5 << 20))),
        ".dockerignore:2: the pattern has 5242880 bytes, more than 65536"
    );
    let line = "a*".repeat(30_000) + "\n";
    assert_eq!(fails(line.repeat(1000)), ".dockerignore:140: the patterns have more than 8388608 bytes together");
    assert!(fails(format!("[{}", "a".repeat(60_000))).len() < 300);
}

#[test]
fn compiled_patterns_are_small() {
    assert!(size_of::<Component>() <= 24 && size_of::<Element>() <= 16 && size_of::<Option<Element>>() <= 16);
    let plain = matcher(&["a/b c/\\*", "a*"]);
    assert!(plain.patterns[0].components.iter().all(|c| matches!(c, Component::Text(_))));
    assert!(matches!(plain.patterns[1].components[0], Component::One(_)));
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
