//! What a step prints: shown, logged, and its last lines kept for an error.

use super::mask::Mask;
use crate::event::EventKind;
use crate::worker::{BuildWorker, Output};
use std::io::Read;
use std::sync::PoisonError;
use xbuild_solver::Task;

/// Bytes of output kept for the error of a failed step.
const TAIL: usize = 16 << 10;

/// Passes on what comes from a pipe until its other end is closed, secrets of the build hidden.
pub(super) fn forward(worker: &BuildWorker, task: &Task<'_, Output>, stream: u8, mut from: impl Read) {
    let mut mask = Mask::new(worker.secrets.values().map(|secret| secret.0.as_slice()));
    let mut buffer = vec![0; 16 << 10];
    // A broken pipe is the end of the output.
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        note(worker, task, stream, mask.push(&buffer[..n]));
    }
    note(worker, task, stream, mask.finish());
}

/// Shows output, and keeps the last of it.
pub(super) fn note(worker: &BuildWorker, task: &Task<'_, Output>, stream: u8, data: Vec<u8>) {
    if data.is_empty() {
        return;
    }
    let mut tails = worker.tails.lock().unwrap_or_else(PoisonError::into_inner);
    let tail = tails.entry(task.vertex.index()).or_default();
    tail.extend_from_slice(&data);
    if tail.len() > 2 * TAIL {
        tail.drain(..tail.len() - TAIL);
    }
    drop(tails);
    worker.events.send(worker.step(task.vertex), EventKind::Log { stream, data });
}
