//! Names of vertices in the progress display.

use crate::budget::Budget;
use crate::shell::{Environment, Expander};
use xbuild_graph::Platform;

/// Numbers the steps of one stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming {
    /// `linux/arm64`, where several platforms are built.
    platform: Option<String>,
    /// Stage name; empty for the only stage without one.
    stage: String,
    total: usize,
    index: usize,
}

impl Naming {
    /// Steps of a stage. `platforms` is the stage's and the target's, if several platforms are built.
    pub(super) fn new(stage: &str, total: usize, platforms: Option<(&Platform, &Platform)>) -> Self {
        Self { platform: platforms.map(|(own, target)| arrow(own, target)), stage: stage.to_owned(), total, index: 0 }
    }

    /// The next step's name.
    pub(super) fn next(&mut self, text: &str) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        self.index += 1;
        let mut prefix = String::new();
        for part in self.platform.iter().chain(Some(&self.stage)).filter(|p| !p.is_empty()) {
            prefix.push_str(part);
            prefix.push(' ');
        }
        let width = self.total.to_string().len();
        format!("[{prefix}{:width$}/{}] {text}", self.index, self.total)
    }
}

/// `linux/amd64->arm64` where a stage for one platform works for another.
fn arrow(own: &Platform, target: &Platform) -> String {
    if own == target {
        return own.to_string();
    }
    let full = target.to_string();
    let shown = match own.os == target.os {
        true => full.split_once('/').map_or(full.as_str(), |(_, rest)| rest),
        false => &full,
    };
    format!("{own}->{shown}")
}

/// An instruction's text with its variables replaced and its keyword in upper case.
pub(super) fn shown(text: &str, env: &Environment, escape: char, budget: &mut Budget) -> String {
    let expanded = Expander::display(escape).expand(text, env, budget);
    let text = expanded.map_or_else(|_| text.to_owned(), |e| e.text);
    match text.split_once(char::is_whitespace) {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// The beginning of a heredoc, in a line.
pub(super) fn summary(data: &[u8]) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(data);
    let line = text.trim().replace("\r\n", "\n").replace('\n', ", ");
    let short: String = line.chars().take(MOST).collect();
    let dots = if short.len() < line.len() { "..." } else { "" };
    format!("({short}{dots})")
}
