//! What happened to containers, images, volumes and networks: a journal of JSON lines, docker's form.

use super::clock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// When the journal is this long, its older half is let go.
const LIMIT: u64 = 8 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// `container`, `image`, `volume` or `network`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened.
    #[serde(rename = "Action")]
    pub action: String,
    /// To what.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// `local`.
    pub scope: String,
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// What an event happened to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Actor {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// What else is known.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// The journal of a store.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    pub(crate) fn of(root: &Path) -> Journal {
        Journal { path: root.join(".events") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an event. One that cannot be written is lost: nothing depends on it.
    pub fn add(&self, kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let (time, nanos) = clock::now();
        let event = Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes },
            scope: "local".to_owned(),
            time,
            time_nano: time.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)),
        };
        let Ok(mut line) = serde_json::to_vec(&event) else {
            return;
        };
        line.push(b'\n');
        if let Some(directory) = self.path.parent() {
            let _ = std::fs::create_dir_all(directory);
        }
        // One write to the end of the file: lines of several processes do not mix.
        if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(&self.path) {
            let _ = file.write_all(&line);
            if file.metadata().is_ok_and(|about| about.len() > LIMIT) {
                let _ = std::fs::rename(&self.path, self.path.with_extension("old"));
            }
        }
    }
}
