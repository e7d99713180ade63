//! `--call`: questions about a Dockerfile.

use super::{Global, Outcome, report};
use anyhow::{Result, bail};
use std::io::Write;
use xbuild_engine::request::Request;

/// Answers `check`, `outline` or `targets`.
pub(crate) fn run(method: &str, json: bool, request: &Request, global: &Global) -> Result<Outcome> {
    if !matches!(method, "check" | "lint" | "outline" | "targets") {
        bail!("unknown method `{method}` (build, check, outline, targets)");
    }
    match global.engine()?.call(method, json, request) {
        Ok(answer) => {
            std::io::stdout().write_all(answer.text.as_bytes())?;
            Ok(if answer.success { Outcome::Success } else { Outcome::Code(1) })
        }
        Err(error) => Ok(report::build_error(&error)),
    }
}
