//! Did you mean …?

/// The option nearest to `word` in edits, if it is near enough to be meant; an equal one needs no suggestion.
pub(crate) fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const LONGEST: usize = 64;
    const MOST: usize = 1000;
    let length = word.chars().count();
    if length == 0 || length > LONGEST {
        return None;
    }
    let allowed = (length / 3).clamp(1, 3);
    options
        .into_iter()
        .take(MOST)
        .filter(|o| *o != word && o.len() <= 2 * LONGEST)
        .map(|o| (distance(&word.to_lowercase(), &o.to_lowercase()), o))
        .filter(|(d, _)| *d <= allowed)
        .min()
        .map(|(_, o)| o.to_owned())
}

/// Edits (insert, remove, replace, swap of neighbours) from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found() {
        let options = ["FROM", "COPY", "RUN", "HEALTHCHECK"];
        assert_eq!(nearest("FORM", options).as_deref(), Some("FROM"));
        assert_eq!(nearest("COPPY", options).as_deref(), Some("COPY"));
        assert_eq!(nearest("HEALTCHEK", options).as_deref(), Some("HEALTHCHECK"));
        assert_eq!(nearest("FROBNICATE", options), None);
    }
}
