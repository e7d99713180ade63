//! Secrets in what a step prints.

/// Shown in place of a secret.
const HIDDEN: &[u8] = b"***";
/// Shorter values are left alone: hiding them would hide half of what is printed.
const SHORTEST: usize = 4;
/// Shortest line of a longer secret that is hidden by itself.
const SHORTEST_LINE: usize = 8;

/// Replaces secrets in a stream that comes in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask {
    /// The longest first.
    secrets: Vec<Vec<u8>>,
    /// An end of the stream that may be the beginning of a secret.
    held: Vec<u8>,
}

impl Mask {
    /// Hides values, without the line end that files have, and the longer lines of values with several.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut secrets = Vec::new();
        for value in values {
            let value = value.trim_ascii();
            if value.len() >= SHORTEST {
                secrets.push(value.to_vec());
            }
            let lines = value.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
            secrets.extend(lines.filter(|line| line.len() >= SHORTEST_LINE).map(<[u8]>::to_vec));
        }
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self { secrets, held: Vec::new() }
    }

    /// What may be shown once `data` has come.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() {
            return data.to_vec();
        }
        self.held.extend_from_slice(data);
        self.show(|secret, rest| secret.len() > rest.len() && secret.starts_with(rest))
    }

    /// What is left when the stream ends.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.show(|_, _| false)
    }

    /// Shows what is held up to the first place where `may_begin` says that a secret may begin that has not come whole.
    fn show(&mut self, may_begin: impl Fn(&[u8], &[u8]) -> bool) -> Vec<u8> {
        let mut shown = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            if self.secrets.iter().any(|secret| may_begin(secret, rest)) {
                break;
            }
            match self.secrets.iter().find(|secret| rest.starts_with(secret)) {
                Some(secret) => {
                    shown.extend_from_slice(HIDDEN);
                    at += secret.len();
                }
                None => {
                    shown.push(rest[0]);
                    at += 1;
                }
            }
        }
        self.held.drain(..at);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(secrets: &[&str], pieces: &[&str]) -> String {
        let mut mask = Mask::new(secrets.iter().map(|s| s.as_bytes()));
        let mut shown: Vec<u8> = pieces.iter().flat_map(|p| mask.push(p.as_bytes())).collect();
        shown.extend(mask.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn secrets_are_hidden_wherever_the_stream_is_cut() {
        assert_eq!(masked(&["hunter2\n"], &["a hunter2 b hun", "ter2 hunte"]), "a *** b *** hunte");
        assert_eq!(masked(&["abcd", "abcdef"], &["abcd", "ef abcd", "x"]), "*** ***x");
        assert_eq!(masked(&["abcd", "abcdef"], &["abcde"]), "***e");
        assert_eq!(masked(&["first line\nsecond line"], &["second line; first line\nsecond line"]), "***; ***");
        assert_eq!(masked(&["x", ""], &["x"]), "x");
    }

    proptest! {
        #[test]
        fn nothing_else_is_changed(text in "[a-c]{0,40}", cuts in proptest::collection::vec(0usize..8, 0..8)) {
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(head);
                rest = tail;
            }
            pieces.push(rest);
            prop_assert_eq!(masked(&["abca", "bbbb"], &pieces), masked(&["abca", "bbbb"], &[&text]));
            prop_assert_eq!(masked(&["zzzz"], &pieces), text);
        }
    }
}
