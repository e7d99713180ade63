//! Programs of others that run at points of a container's life.

use super::error::OciError;
use oci_spec::runtime::Hook;
use rustix::fs::MemfdFlags;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs the hooks of a kind one after the other, each with the container's state on standard input. The first that fails
/// ends this.
pub(super) fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &str) -> Result<(), OciError> {
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        one(hook, state).map_err(|why| {
            OciError::Refused(format!("error running {kind} hook #{index}: `{}`: {why}", hook.path().display()))
        })?;
    }
    Ok(())
}

/// The same, for hooks whose failures do not matter to the container; tells them.
pub(super) fn run_all(kind: &str, hooks: Option<&Vec<Hook>>, state: &str) -> Vec<String> {
    let each =
        |hook: &Hook| one(hook, state).err().map(|why| format!("{kind} hook `{}`: {why}", hook.path().display()));
    hooks.into_iter().flatten().filter_map(each).collect()
}

fn one(hook: &Hook, state: &str) -> Result<(), String> {
    if !hook.path().is_absolute() {
        return Err("the path is not absolute".to_owned());
    }
    let told = |error: std::io::Error| error.to_string();
    let memory = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).map_err(|error| told(error.into()))?;
    let mut output = std::fs::File::from(memory);
    let writer = || output.try_clone().map(Stdio::from).map_err(told);
    let mut command = Command::new(hook.path());
    let arguments = hook.args().as_deref().unwrap_or_default();
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')));
    let mut child = command.stdin(Stdio::piped()).stdout(writer()?).stderr(writer()?).spawn().map_err(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read it.
        let _ = stdin.write_all(state.as_bytes());
    }
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        match deadline {
            None => break child.wait().map_err(told)?,
            Some(deadline) => match child.try_wait().map_err(told)? {
                Some(status) => break status,
                None if Instant::now() >= deadline => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("it took longer than {} s", timeout.unwrap_or_default()));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            },
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = output.rewind();
    let _ = output.take(4096).read_to_end(&mut text);
    Err(format!("{status}, output: {}", String::from_utf8_lossy(&text).trim()))
}
