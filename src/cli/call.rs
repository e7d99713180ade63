//! `--call`: questions about a Dockerfile.

use super::{Global, Outcome, report};
use anyhow::{Result, bail};
use std::io::Write;
use xbuild_engine::request::Request;

/// Answers `check`, `outline`, `targets` or `llb`.
pub(crate) fn run(method: &str, json: bool, request: &Request, global: &Global) -> Result<Outcome> {
    if !matches!(method, "check" | "lint" | "outline" | "targets" | "llb") {
        bail!("unknown method `{method}` (build, check, outline, targets, llb)");
    }
    if json && method == "llb" {
        bail!("LLB is a protobuf message: --call=llb has no JSON form");
    }
    match global.engine()?.call(method, json, request) {
        Ok(answer) => {
            std::io::stdout().write_all(&answer.bytes)?;
            Ok(if answer.success { Outcome::Success } else { Outcome::Code(1) })
        }
        Err(error) => Ok(report::build_error(&error)),
    }
}
