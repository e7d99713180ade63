//! Values as messages show them: at full length only if somebody would read them.

use std::borrow::Cow;

/// Most characters of a word or a quoted value.
const MOST_OF_VALUE: usize = 200;
/// Most characters of a message.
const MOST_OF_MESSAGE: usize = 4000;

/// The first `most` characters with `…` behind them; the whole text if it has no more.
pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A value to be quoted: the beginning and the length of a long one.
pub(crate) fn value(text: &str) -> Cow<'_, str> {
    match cut(text, MOST_OF_VALUE) {
        Cow::Owned(short) => Cow::Owned(format!("{short} ({} bytes)", text.len())),
        whole => whole,
    }
}

/// A message whose long words, which are values that it quotes, are shortened.
pub(crate) fn message(text: String) -> String {
    if text.len() <= MOST_OF_VALUE {
        return text;
    }
    let words: String = text.split_inclusive(char::is_whitespace).map(word).collect();
    cut(&words, MOST_OF_MESSAGE).into_owned()
}

/// One word, the marks around it kept.
fn word(text: &str) -> Cow<'_, str> {
    let bare = text.trim_end_matches(|c: char| c.is_whitespace() || "`'\"),.:".contains(c));
    let open = usize::from(bare.starts_with(['`', '\'', '"', '(']));
    match value(&bare[open..]) {
        Cow::Owned(short) => Cow::Owned(format!("{}{short}{}", &bare[..open], &text[bare.len()..])),
        Cow::Borrowed(_) => cut(text, 2 * MOST_OF_VALUE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shortened() {
        let long = "é".repeat(1000);
        assert_eq!(value("short"), "short");
        assert_eq!(value(&"x".repeat(200)).len(), 200);
        assert_eq!(value(&long), format!("{}… (2000 bytes)", "é".repeat(200)));
        let shown = message(format!("`{long}`: is not it\n({long}).\n"));
        let short = value(&long);
        assert_eq!(shown, format!("`{short}`: is not it\n({short}).\n"));
        assert_eq!(message("a b ".repeat(200)), "a b ".repeat(200));
        assert!(message("a b ".repeat(2000)).chars().count() <= MOST_OF_MESSAGE + 1);
        assert!(message("`".repeat(1 << 20)).len() <= 2 * MOST_OF_VALUE + 3);
    }
}
