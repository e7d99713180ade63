//! What went wrong, in the form that callers of runtimes read.

use super::Cli;
use std::fs::OpenOptions;
use std::io::Write;
use xbuild_runner::container::clock;

/// Tells of an error, on standard error and in the log.
pub(super) fn error(cli: &Cli, error: &anyhow::Error) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    tell(cli, "error", &causes.join(": "));
}

/// Tells of something that did not keep the command from doing its work.
pub(super) fn warning(cli: &Cli, text: &str) {
    tell(cli, "warning", text);
}

fn tell(cli: &Cli, level: &str, message: &str) {
    eprintln!("xbuild: {message}");
    let Some(path) = &cli.log else { return };
    let time = clock::stamp();
    let line = match cli.log_format.as_str() {
        "json" => serde_json::json!({ "level": level, "msg": message, "time": time }).to_string(),
        _ => format!("time=\"{time}\" level={level} msg={message:?}"),
    };
    // Whoever cannot read the log reads standard error.
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}
