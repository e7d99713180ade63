//! Patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?`, and escapes. No backtracking: between two stars the first place
//! that fits is as good as any other.

/// One character of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Is(char),
    Any,
}

/// Fixed-length pieces with a star between each two.
struct Pattern {
    pieces: Vec<Vec<Part>>,
}

/// Most comparisons that one pattern may cost.
const MAX_COST: usize = 1 << 28;

impl Pattern {
    fn read(text: &str, value: usize) -> Result<Self, String> {
        let mut pieces = vec![Vec::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = match c {
                '*' => {
                    pieces.push(Vec::new());
                    continue;
                }
                '?' => Part::Any,
                '\\' => Part::Is(chars.next().ok_or("invalid pattern: escape at its end")?),
                c => Part::Is(c),
            };
            if let Some(piece) = pieces.last_mut() {
                piece.push(part);
            }
        }
        // Only pieces of several parts can cost more than a pass over the value.
        let longest = pieces.iter().map(Vec::len).max().unwrap_or(0);
        if longest.saturating_mul(value) > MAX_COST {
            return Err("the pattern of a substitution is too long for its value".to_owned());
        }
        Ok(Self { pieces })
    }

    fn reversed(mut self) -> Self {
        self.pieces.reverse();
        self.pieces.iter_mut().for_each(|p| p.reverse());
        self
    }

    /// End of the shortest or longest match that starts at `from`.
    fn end_at(&self, text: &[char], from: usize, longest: bool) -> Option<usize> {
        let (first, others) = self.pieces.split_first()?;
        if !fits(first, text, from) {
            return None;
        }
        let mut at = from + first.len();
        let Some((last, middle)) = others.split_last() else {
            return Some(at);
        };
        for piece in middle {
            at = find(piece, text, at)? + piece.len();
        }
        match longest {
            false => Some(find(last, text, at)? + last.len()),
            true => {
                let latest = text.len().checked_sub(last.len())?;
                (at..=latest).rev().find(|&i| fits(last, text, i)).map(|i| i + last.len())
            }
        }
    }

    /// The first and there longest match that starts at `from` or later.
    fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        let start = find(self.pieces.first()?, text, from)?;
        Some((start, self.end_at(text, start, true)?))
    }
}

fn fits(piece: &[Part], text: &[char], at: usize) -> bool {
    let Some(part) = text.get(at..at + piece.len()) else {
        return false;
    };
    piece.iter().zip(part).all(|(want, have)| *want == Part::Any || *want == Part::Is(*have))
}

fn find(piece: &[Part], text: &[char], from: usize) -> Option<usize> {
    let latest = text.len().checked_sub(piece.len())?;
    (from..=latest).find(|&at| fits(piece, text, at))
}

/// `text` without the shortest or longest beginning that fits.
pub(super) fn trim_start(pattern: &str, text: &[char], longest: bool) -> Result<String, String> {
    let pattern = Pattern::read(pattern, text.len())?;
    let end = pattern.end_at(text, 0, longest).unwrap_or(0);
    Ok(text[end..].iter().collect())
}

/// `text` without the shortest or longest end that fits.
pub(super) fn trim_end(pattern: &str, text: &[char], longest: bool) -> Result<String, String> {
    let pattern = Pattern::read(pattern, text.len())?.reversed();
    let backwards: Vec<char> = text.iter().rev().copied().collect();
    let cut = pattern.end_at(&backwards, 0, longest).unwrap_or(0);
    Ok(text[..text.len() - cut].iter().collect())
}

/// `text` with the first or every match replaced. Matches of nothing are passed over.
pub(super) fn replace(pattern: &str, text: &[char], with: &str, all: bool, limit: usize) -> Result<String, String> {
    let pattern = Pattern::read(pattern, text.len())?;
    let mut out = String::new();
    let mut at = 0;
    while let Some((start, end)) = pattern.find(text, at).filter(|(s, e)| s < e) {
        out.extend(&text[at..start]);
        out.push_str(with);
        at = end;
        if out.len() > limit {
            return Err(format!("the expansion has more than {limit} bytes"));
        }
        if !all {
            break;
        }
    }
    out.extend(&text[at..]);
    Ok(out)
}
