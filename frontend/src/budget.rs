//! How much memory a Dockerfile may ask for by what its variables and stages multiply.

/// Most bytes that all expansions make together, thrown-away alternatives included.
const MAX_TEXT: usize = 64 << 20;
/// Most bytes of what instructions copy: variables for each RUN, a stage's state for those that stand on it, ports, history.
const MAX_COPIES: usize = 256 << 20;

/// What one Dockerfile has used. Memory is counted before it is taken, and a limit that was passed stays passed.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    text: usize,
    copies: usize,
}

impl Budget {
    /// Counts bytes that an expansion makes.
    ///
    /// # Errors
    /// More than 64 MiB altogether.
    pub(crate) fn text(&mut self, bytes: usize) -> Result<(), String> {
        self.text = self.text.saturating_add(bytes);
        match self.exhausted() {
            false => Ok(()),
            true => Err("the expanded text of all instructions has more than 64 MiB".to_owned()),
        }
    }

    /// Whether expansions have made too much already.
    pub(crate) fn exhausted(&self) -> bool {
        self.text > MAX_TEXT
    }

    /// Counts bytes that are kept once more, though the Dockerfile has them only once.
    ///
    /// # Errors
    /// More than 256 MiB altogether.
    pub(crate) fn copies(&mut self, bytes: usize) -> Result<(), String> {
        self.copies = self.copies.saturating_add(bytes);
        match self.copies <= MAX_COPIES {
            true => Ok(()),
            false => {
                Err("what all instructions keep of variables, ports, history and stages has more than 256 MiB"
                    .to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_limit_stays_passed() {
        let mut budget = Budget::default();
        assert!(budget.text(MAX_TEXT).is_ok() && !budget.exhausted());
        assert!(budget.text(1).unwrap_err().contains("64 MiB") && budget.exhausted());
        assert!(budget.text(0).is_err());
        assert!(budget.copies(MAX_COPIES).is_ok());
        assert!(budget.copies(usize::MAX).unwrap_err().contains("256 MiB"));
    }
}
