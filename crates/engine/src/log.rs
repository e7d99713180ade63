//! The full output of a build's steps, kept compressed in `builds/ID/log.zst`, one JSON object a line.
//!
//! Nothing is clipped. A build whose steps print nothing leaves no log. The newest [`KEPT`] are kept.

use crate::event::{Event, EventKind, Sink};
use serde_json::json;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Logs kept; older ones go when a new one begins.
const KEPT: usize = 200;

type Writer = zstd::stream::AutoFinishEncoder<'static, File>;

/// Writes the log of one build beside passing its events on.
struct Log {
    directory: PathBuf,
    /// Names that came before anything was printed.
    names: Vec<String>,
    writer: Option<Writer>,
    broken: bool,
}

/// A sink that keeps a log in `builds/ID` under `root` and passes every event on.
pub(crate) fn keep(root: &Path, id: &str, sink: Arc<Sink>) -> Arc<Sink> {
    let directory = root.join("builds").join(id);
    let log = Mutex::new(Log { directory, names: Vec::new(), writer: None, broken: false });
    Arc::new(move |event: Event| {
        log.lock().unwrap_or_else(PoisonError::into_inner).take(&event);
        sink(event);
    })
}

impl Log {
    fn take(&mut self, event: &Event) {
        let seconds = event.at.as_secs_f64();
        let line = match &event.kind {
            EventKind::Named(name) => json!({"step": event.step.0, "name": name}),
            EventKind::Log { stream, data } => {
                json!({"step": event.step.0, "at": seconds, "stream": stream, "data": String::from_utf8_lossy(data)})
            }
            EventKind::Failed(why) => json!({"step": event.step.0, "at": seconds, "failed": why}),
            EventKind::Done => json!({"step": event.step.0, "at": seconds, "done": true}),
            _ => return,
        };
        let line = format!("{line}\n");
        if self.writer.is_none() && matches!(event.kind, EventKind::Log { .. }) && !self.broken {
            // A log that cannot be kept does not stop the build.
            self.writer = self.begin().ok();
            self.broken = self.writer.is_none();
        }
        match &mut self.writer {
            None => self.names.push(line),
            Some(writer) => self.broken |= writer.write_all(line.as_bytes()).is_err(),
        }
        if self.broken {
            self.writer = None;
            self.names.clear();
        }
    }

    fn begin(&mut self) -> std::io::Result<Writer> {
        if let Some(builds) = self.directory.parent() {
            fs::create_dir_all(builds)?;
            forget_old(builds)?;
        }
        fs::create_dir_all(&self.directory)?;
        let file = File::create(self.directory.join("log.zst"))?;
        let mut writer = zstd::Encoder::new(file, 1)?.auto_finish();
        self.names.drain(..).try_for_each(|line| writer.write_all(line.as_bytes()))?;
        Ok(writer)
    }
}

/// Names of builds begin with their time, so the first in order are the oldest.
fn forget_old(builds: &Path) -> std::io::Result<()> {
    let mut names: Vec<PathBuf> = fs::read_dir(builds)?.flatten().map(|e| e.path()).collect();
    names.sort();
    let excess = (names.len() + 1).saturating_sub(KEPT);
    names.iter().take(excess).try_for_each(fs::remove_dir_all)
}
