//! The small regular expressions that filters take: `^ $ . * + ? [a-z] | \\` and plain text.

/// Whether `pattern` is found somewhere in `text`.
pub(crate) fn found(pattern: &str, text: &str) -> bool {
    alternatives(pattern).iter().any(|one| found_one(one, text))
}

fn alternatives(pattern: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut escaped = false;
    for c in pattern.chars() {
        match c {
            '|' if !escaped => all.push(String::new()),
            c => {
                if let Some(last) = all.last_mut() {
                    last.push(c);
                }
            }
        }
        escaped = c == '\\' && !escaped;
    }
    all
}

fn found_one(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    match pattern.split_first() {
        Some(('^', rest)) => here(rest, &text),
        _ => (0..=text.len()).any(|at| here(&pattern, &text[at..])),
    }
}

fn here(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => true,
        ['$'] => text.is_empty(),
        _ => {
            let length = atom(pattern);
            let (one, rest) = pattern.split_at(length);
            let times = rest.first().copied();
            let after = match times {
                Some('*' | '+' | '?') => &rest[1..],
                _ => rest,
            };
            let matching = text.iter().take_while(|c| matches(one, **c)).count();
            let (least, most) = match times {
                Some('*') => (0, matching),
                Some('+') => (1, matching),
                Some('?') => (0, matching.min(1)),
                _ => (1, matching.min(1)),
            };
            (least..=most).rev().any(|count| here(after, &text[count..]))
        }
    }
}

/// Characters of the pattern that stand for one character of the text.
fn atom(pattern: &[char]) -> usize {
    match pattern {
        ['\\', _, ..] => 2,
        ['[', rest @ ..] => {
            let first = usize::from(rest.first() == Some(&'^'));
            rest.iter().skip(first + 1).position(|c| *c == ']').map_or(1, |at| at + first + 3)
        }
        _ => 1,
    }
}

fn matches(atom: &[char], c: char) -> bool {
    match atom {
        ['.'] => true,
        ['\\', 'd'] => c.is_ascii_digit(),
        ['\\', 'w'] => c.is_ascii_alphanumeric() || c == '_',
        ['\\', 's'] => c.is_whitespace(),
        ['\\', own] => *own == c,
        ['[', inside @ .., ']'] if !inside.is_empty() => {
            let (negated, inside) = match inside {
                ['^', rest @ ..] => (true, rest),
                all => (false, all),
            };
            let mut at = 0;
            let mut hit = false;
            while at < inside.len() {
                if at + 2 < inside.len() && inside[at + 1] == '-' {
                    hit |= (inside[at]..=inside[at + 2]).contains(&c);
                    at += 3;
                } else {
                    hit |= inside[at] == c;
                    at += 1;
                }
            }
            hit != negated
        }
        [own] => *own == c,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::found;

    #[test]
    fn patterns_of_filters() {
        for (pattern, text, want) in [
            ("web", "my-web-1", true),
            ("^web", "my-web", false),
            ("-three$", "kit-7-three", true),
            ("-three$", "kit-7-threes", false),
            ("^web$", "web", true),
            ("a.*z", "xabcz", true),
            ("ab+c", "ac", false),
            ("colou?r", "color", true),
            ("[0-9]+x", "v12x", true),
            ("^[^a]", "abc", false),
            ("one|two", "the two", true),
            ("a\\.b", "axb", false),
            ("", "anything", true),
        ] {
            assert_eq!(found(pattern, text), want, "{pattern} in {text}");
        }
    }
}
