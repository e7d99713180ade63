//! The lexical parts, as nom parsers: words, flags, heredoc marks, directives, durations.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_till1, take_while, take_while1};
use nom::character::complete::{anychar, char, digit0};
use nom::combinator::{map, opt, recognize, rest, value, verify};
use nom::multi::{fold_many0, many1_count};
use nom::sequence::{delimited, pair, preceded, terminated};
use nom::{IResult, Parser};

fn blank(c: char) -> bool {
    c.is_whitespace()
}

/// A quoted part, quotes included. An unterminated one reaches the end.
fn quoted<'a>(quote: char, escape: Option<char>) -> impl FnMut(&'a str) -> IResult<&'a str, &'a str> {
    move |input: &'a str| {
        let plain = recognize(take_till1(move |c| c == quote || Some(c) == escape));
        let escaped = recognize(pair(verify(anychar, move |c| Some(*c) == escape), opt(anychar)));
        let body = fold_many0(alt((plain, escaped)), || (), |(), _| ());
        recognize((char(quote), body, opt(char(quote)))).parse(input)
    }
}

/// One word with its quotes and escapes as they are.
fn raw_word<'a>(escape: char) -> impl FnMut(&'a str) -> IResult<&'a str, &'a str> {
    move |input: &'a str| {
        let plain = take_while1(move |c| !blank(c) && c != '\'' && c != '"' && c != escape);
        let escaped = recognize(pair(char(escape), opt(anychar)));
        recognize(many1_count(alt((plain, quoted('\'', None), quoted('"', Some(escape)), escaped)))).parse(input)
    }
}

/// Splits at blanks outside of quotes; quotes and escapes stay in the words.
pub(crate) fn words(text: &str, escape: char) -> Vec<&str> {
    let mut found = Vec::new();
    let mut left = text.trim_start();
    while let Ok((after, word)) = raw_word(escape)(left) {
        found.push(word);
        left = after.trim_start();
    }
    found
}

/// Whether every quote of `text` has its partner.
fn quotes_are_closed(text: &str, escape: char) -> bool {
    let mut open = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match open {
            Some(q) if c == q => open = None,
            Some('\'') => {}
            _ if c == escape => {
                chars.next();
            }
            None if c == '\'' || c == '"' => open = Some(c),
            _ => {}
        }
    }
    open.is_none()
}

/// One flag word, quotes and escapes undone.
fn flag_word(input: &str) -> IResult<&str, String> {
    let escaped =
        |input| preceded(char('\\'), map(opt(anychar), |c| c.map(String::from).unwrap_or_default())).parse(input);
    let single = delimited(char('\''), take_till(|c| c == '\''), opt(char('\'')));
    let inside = alt((map(take_till1(|c| c == '"' || c == '\\'), str::to_owned), escaped));
    let double = delimited(char('"'), fold_many0(inside, String::new, |all, part| all + &part), opt(char('"')));
    let plain = take_while1(|c| !blank(c) && !matches!(c, '\'' | '"' | '\\'));
    fold_many0(
        alt((map(plain, str::to_owned), escaped, map(single, str::to_owned), double)),
        String::new,
        |all, part| all + &part,
    )
    .parse(input)
}

/// Takes `--name[=value]` words off the front. A lone `--` ends them.
pub(crate) fn flags(text: &str) -> (Vec<String>, &str) {
    let mut found = Vec::new();
    let mut left = text.trim_start();
    while let Ok((after, word)) = preceded(tag::<_, _, nom::error::Error<&str>>("--"), flag_word).parse(left) {
        left = after.trim_start();
        if word.is_empty() {
            break;
        }
        found.push(word);
    }
    (found, left)
}

/// Splits a logical line into its keyword and the rest.
pub(crate) fn keyword(line: &str) -> (&str, &str) {
    let separator = |c: char| matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ');
    let line = line.trim();
    match line.find(separator) {
        Some(at) => (&line[..at], line[at..].trim()),
        None => (line, ""),
    }
}

/// `<<NAME`, `<<-NAME`, `3<<"NAME"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) name: String,
    pub(crate) expand: bool,
    pub(crate) chomp: bool,
}

/// Reads a word that is nothing but the mark of a heredoc.
pub(crate) fn heredoc_mark(word: &str) -> Option<Mark> {
    let mut parser = (
        digit0::<&str, nom::error::Error<&str>>,
        tag("<<"),
        map(opt(char('-')), |dash| dash.is_some()),
        verify(rest, |name: &str| !name.is_empty() && !name.contains('<')),
    );
    let (_, (fd, _, chomp, name)) = parser.parse(word).ok()?;
    if fd.parse::<u32>().is_err() && !fd.is_empty() {
        return None;
    }
    let is_one_word = matches!(words(name, '\\').as_slice(), [one] if *one == name);
    if !is_one_word || !quotes_are_closed(name, '\\') {
        return None;
    }
    let plain = unquote(name);
    let expand = plain == name;
    (!plain.is_empty()).then_some(Mark { name: plain, expand, chomp })
}

/// The marks of all heredocs that a line opens.
pub(crate) fn heredoc_marks(line: &str) -> Vec<Mark> {
    if !line.contains("<<") || !quotes_are_closed(line, '\\') {
        return Vec::new();
    }
    words(line, '\\').into_iter().filter_map(heredoc_mark).collect()
}

/// Removes quotes and escapes from a word.
fn unquote(word: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some('\''), c) => out.push(c),
            (_, '\\') => out.extend(chars.next()),
            (None, '\'' | '"') => quote = Some(c),
            (_, c) => out.push(c),
        }
    }
    out
}

/// `# name = value` as (name in lower case, value).
pub(crate) fn directive(line: &str) -> Option<(String, &str)> {
    let name =
        recognize(pair(verify(anychar, char::is_ascii_alphabetic), take_while(|c: char| c.is_ascii_alphanumeric())));
    let spaces = || take_while::<_, &str, nom::error::Error<&str>>(blank);
    let mut parser = preceded((char('#'), spaces()), pair(terminated(name, (spaces(), char('='), spaces())), rest));
    let (_, (name, text)) = parser.parse(line).ok()?;
    let text = text.trim_end();
    (!text.is_empty()).then(|| (name.to_ascii_lowercase(), text))
}

/// A duration as Go writes it (`1m30s`, `500ms`), in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let unit = alt((
        value(1u64, tag::<_, &str, nom::error::Error<&str>>("ns")),
        value(1_000, alt((tag("us"), tag("µs"), tag("μs")))),
        value(1_000_000, tag("ms")),
        value(1_000_000_000, tag("s")),
        value(60_000_000_000, tag("m")),
        value(3_600_000_000_000, tag("h")),
    ));
    let fraction = preceded(char('.'), digit0);
    let number = verify((digit0, opt(fraction)), |(whole, part): &(&str, Option<&str>)| {
        !whole.is_empty() || part.is_some_and(|p| !p.is_empty())
    });
    let mut one = pair(number, unit);
    let (negative, mut left) = match text.strip_prefix('-') {
        Some(after) => (true, after),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if left == "0" {
        return Some(0);
    }
    if left.is_empty() {
        return None;
    }
    let mut total = 0u64;
    while !left.is_empty() {
        let (after, ((whole, part), unit)) = one.parse(left).ok()?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part: f64 = match part {
            Some(p) if !p.is_empty() => format!("0.{p}").parse().ok()?,
            _ => 0.0,
        };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add((part * unit as f64) as u64)?;
        left = after;
    }
    let total = i64::try_from(total).ok()?;
    Some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_quotes() {
        assert_eq!(words(r#"a "b c" d\ e 'f "g' h"i j"k"#, '\\'), ["a", "\"b c\"", "d\\ e", "'f \"g'", "h\"i j\"k"]);
        assert_eq!(words("  ", '\\'), Vec::<&str>::new());
        assert_eq!(words(r"c:\dir x`  y", '`'), [r"c:\dir", "x` ", "y"]);
        assert_eq!(words("a 'open", '\\'), ["a", "'open"]);
    }

    #[test]
    fn flags_come_off_the_front() {
        assert_eq!(flags("--a --b=c d --e"), (vec!["a".into(), "b=c".into()], "d --e"));
        assert_eq!(flags(r#"--x="a b" y"#), (vec!["x=a b".into()], "y"));
        assert_eq!(flags("-- --x"), (vec![], "--x"));
        assert_eq!(flags("-x"), (vec![], "-x"));
    }

    #[test]
    fn marks_of_heredocs() {
        let names = |line| heredoc_marks(line).into_iter().map(|m| m.name).collect::<Vec<_>>();
        assert_eq!(names("cat <<A 3<<-B <<'C D'"), ["A", "B", "C D"]);
        assert!(names(r#"echo "<<NOT""#).is_empty());
        assert!(names("echo $((1<<3))").is_empty());
        assert!(names("echo <<<EOF").is_empty());
        assert!(!heredoc_mark("<<\"E\"").unwrap().expand);
        assert!(heredoc_mark("<<-E").unwrap().chomp);
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("5m", Some(300_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("500ms", Some(500_000_000)),
            ("0", Some(0)),
            ("-1s", Some(-1_000_000_000)),
            ("5", None),
            ("", None),
            ("s", None),
            ("99999999999h", None),
        ] {
            assert_eq!(duration(text), want, "{text}");
        }
    }

    #[test]
    fn directives_are_names_with_values() {
        assert_eq!(directive("# escape=`"), Some(("escape".into(), "`")));
        assert_eq!(directive("#syntax = a/b:1 "), Some(("syntax".into(), "a/b:1")));
        assert_eq!(directive("# a comment"), None);
        assert_eq!(directive("# x-y=z"), None);
    }
}
