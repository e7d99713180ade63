//! Errors as people read them.

use super::Outcome;
use crate::progress::harmless;
use xbuild_engine::EngineError;

/// Lines of a failed step's output that are shown again at the end.
const TAIL: usize = 20;

/// Prints a failed build and gives the exit code.
pub(crate) fn build_error(error: &EngineError) -> Outcome {
    match error {
        EngineError::Step(step) => {
            if !step.tail.is_empty() {
                eprintln!("------\n > {}:", harmless(&step.step));
                let skipped = step.tail.len().saturating_sub(TAIL);
                step.tail.iter().skip(skipped).for_each(|line| eprintln!("{}", harmless(line)));
                eprintln!("------");
            }
            lines(&step.excerpt);
            lines(&format!("ERROR: {step}"));
        }
        EngineError::Dockerfile(diagnostics) => {
            diagnostics.iter().for_each(|text| lines(text));
            let first = diagnostics.first().and_then(|d| d.lines().next()).unwrap_or_default();
            let more =
                if diagnostics.len() > 1 { format!(" (and {} more)", diagnostics.len() - 1) } else { String::new() };
            lines(&format!("ERROR: failed to solve: {first}{more}"));
        }
        EngineError::Cancelled => {
            eprintln!("ERROR: the build was cancelled");
            return Outcome::Code(130);
        }
        other => lines(&format!("ERROR: failed to solve: {}", chain(other))),
    }
    Outcome::Code(1)
}

/// Prints what docker's command line says without a word before it.
pub(crate) fn plain(text: &str) {
    lines(text);
}

/// Prints an error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    lines(&format!("ERROR: {}", chain(error.as_ref())));
}

/// A remark after the result.
pub(crate) fn note(text: &str) {
    eprintln!();
    lines(text);
}

fn lines(text: &str) {
    text.lines().for_each(|line| eprintln!("{}", harmless(line)));
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
