//! What is kept of containers.

use super::bundle::Bundle;
use super::error::{At, OciError};
use crate::container::clock;
use crate::spec::CgroupSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Version of the specification that states and configurations follow.
pub(super) const VERSION: &str = "1.2.0";

/// All containers of one state directory.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
}

/// A container, as `state.json` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Its first process, as the host sees it.
    pub pid: u32,
    /// When that began, in the kernel's ticks: tells it from a later one with the same number.
    start_time: u64,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Those of the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Its control group: parent and name.
    group: (String, String),
    /// Whether its processes may set their groups.
    pub(super) setgroups: bool,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the specification's own words")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl Record {
    pub(super) fn new(
        id: &str,
        pid: u32,
        bundle: &Bundle,
        group: &CgroupSpec,
        setgroups: bool,
    ) -> Result<Record, OciError> {
        let annotations = bundle.config().annotations().iter().flatten();
        Ok(Record {
            id: id.to_owned(),
            pid,
            start_time: start_time(pid).unwrap_or_default(),
            bundle: bundle.directory().to_owned(),
            rootfs: bundle.rootfs()?,
            created: clock::stamp(),
            annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
            group: (group.parent.clone(), group.name.clone()),
            setgroups,
        })
    }

    pub(super) fn group(&self) -> CgroupSpec {
        let (parent, name) = self.group.clone();
        CgroupSpec { parent, name, everywhere: true, ..CgroupSpec::default() }
    }

    /// Whether its first process is there: one that has ended and that nobody has waited for is not.
    pub(super) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// When a process began; `None` if there is none, or only the remains of one.
fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; what follows it does not.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The state as the specification has it, for hooks and for `state`.
#[must_use]
pub(super) fn described(record: &Record, status: Status) -> serde_json::Value {
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    serde_json::json!({
        "ociVersion": VERSION,
        "id": record.id,
        "status": status,
        "pid": pid,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
    })
}

impl Runtime {
    /// The containers whose states lie in `root`.
    #[must_use]
    pub fn at(root: &Path) -> Runtime {
        Runtime { root: root.to_owned() }
    }

    pub(super) fn directory(&self, id: &str) -> Result<PathBuf, OciError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        if id.is_empty() || id.len() > 255 || !id.bytes().all(plain) || matches!(id, "." | "..") {
            return Err(OciError::Id(id.to_owned()));
        }
        Ok(self.root.join(id))
    }

    /// Makes the directory of a new container, with a copy of its configuration.
    pub(super) fn claim(&self, id: &str, bundle: &Bundle) -> Result<PathBuf, OciError> {
        let directory = self.directory(id)?;
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.root).at("make", &self.root)?;
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(OciError::Exists(id.to_owned())),
            made => made.at("make", &directory)?,
        }
        let file = directory.join("config.json");
        fs::copy(bundle.directory().join("config.json"), &file).at("write", &file)?;
        Ok(directory)
    }

    /// Writes a container's state; the file appears whole.
    pub(super) fn keep(&self, record: &Record) -> Result<(), OciError> {
        let file = self.directory(&record.id)?.join("state.json");
        let part = file.with_extension("part");
        let bytes = serde_json::to_vec(record).map_err(|source| OciError::Config { path: file.clone(), source })?;
        fs::write(&part, bytes).at("write", &part)?;
        fs::rename(&part, &file).at("write", &file)
    }

    /// Finds a container; `None` of one that is being created.
    pub fn find(&self, id: &str) -> Result<Option<Record>, OciError> {
        let directory = self.directory(id)?;
        let file = directory.join("state.json");
        match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match directory.is_dir() {
                true => Ok(None),
                false => Err(OciError::Missing(id.to_owned())),
            },
            bytes => serde_json::from_slice(&bytes.at("read", &file)?)
                .map(Some)
                .map_err(|source| OciError::Config { path: file, source }),
        }
    }

    /// A container that was created.
    pub fn get(&self, id: &str) -> Result<Record, OciError> {
        self.find(id)?.ok_or_else(|| OciError::Refused(format!("container `{id}` is being created")))
    }

    /// What a container does now.
    #[must_use]
    pub fn status(&self, record: &Record) -> Status {
        if !record.is_alive() {
            return Status::Stopped;
        }
        if self.root.join(&record.id).join("start").exists() {
            return Status::Created;
        }
        match crate::cgroup::is_frozen(&record.group()) {
            true => Status::Paused,
            false => Status::Running,
        }
    }

    /// `state`: what the specification says that it prints.
    pub fn state(&self, id: &str) -> Result<serde_json::Value, OciError> {
        match self.find(id)? {
            Some(record) => Ok(described(&record, self.status(&record))),
            None => Ok(serde_json::json!({
                "ociVersion": VERSION, "id": id, "status": Status::Creating, "pid": 0, "bundle": "",
            })),
        }
    }

    /// All containers, by their ids.
    pub fn list(&self) -> Result<Vec<Record>, OciError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &self.root)?,
        };
        let ids = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut found: Vec<Record> = ids.filter_map(|id| self.find(&id).ok().flatten()).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// The configuration that a container was created with.
    pub(super) fn bundle_of(&self, record: &Record) -> Result<Bundle, OciError> {
        Bundle::with_config(&record.bundle, &self.directory(&record.id)?.join("config.json"))
    }
}
