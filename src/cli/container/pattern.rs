//! Regular expressions of filters.

/// Whether `pattern` is found somewhere in `text`; one that cannot be read is found nowhere.
pub(crate) fn found(pattern: &str, text: &str) -> bool {
    regex_lite::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::found;

    #[test]
    fn filters_may_be_anchored() {
        for (pattern, text, want) in
            [("web", "my-web-1", true), ("^web", "my-web", false), ("^(a|b)$", "b", true), ("(", "(", false)]
        {
            assert_eq!(found(pattern, text), want, "{pattern} {text}");
        }
    }
}
