//! Volumes: directories that outlive containers.
//!
//! `ROOT/volumes/NAME/_data` is what containers see, `ROOT/volumes/NAME/volume.json` says what it is.

use super::clock;
use super::error::{At, ContainerError};
use super::files::{Containers, is_name, read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, ContainerError>;

/// A volume, in docker's form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "docker's own names")]
pub struct Volume {
    pub created_at: String,
    pub driver: String,
    pub labels: BTreeMap<String, String>,
    pub mountpoint: String,
    pub name: String,
    pub options: BTreeMap<String, String>,
    pub scope: String,
    /// Not docker's: made without a name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

/// All volumes of a store.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

impl Volumes {
    /// The volumes of the store that these containers belong to.
    #[must_use]
    pub fn beside(containers: &Containers) -> Volumes {
        Volumes { root: containers.directory("..").join("volumes") }
    }

    /// The volumes of the store at `root`.
    #[must_use]
    pub fn of(root: &std::path::Path) -> Volumes {
        Volumes { root: root.join("volumes") }
    }

    /// Makes a volume; one that is there stays as it is. Whether it is new. The option `device` names a directory of the host
    /// that the volume is.
    pub fn create(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
        anonymous: bool,
    ) -> Result<(Volume, bool)> {
        if !is_name(name) {
            return Err(ContainerError::Refused(format!(
                "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            )));
        }
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.root).at("make", &self.root)?;
        let directory = self.root.join(name);
        match fs::DirBuilder::new().mode(0o711).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return self.get(name).map(|volume| (volume, false));
            }
            made => made.at("make", &directory)?,
        }
        let data = directory.join("_data");
        fs::DirBuilder::new().mode(0o755).create(&data).at("make", &data)?;
        let volume = Volume {
            created_at: clock::stamp(),
            driver: "local".to_owned(),
            labels: labels.clone(),
            mountpoint: data.canonicalize().unwrap_or(data).display().to_string(),
            name: name.to_owned(),
            options: options.clone(),
            scope: "local".to_owned(),
            anonymous,
        };
        write_json(&directory.join("volume.json"), &volume)?;
        Ok((volume, true))
    }

    /// A volume by name.
    pub fn get(&self, name: &str) -> Result<Volume> {
        let missing = || ContainerError::Refused(format!("get {name}: no such volume"));
        if !is_name(name) {
            return Err(missing());
        }
        let path = self.root.join(name).join("volume.json");
        // Somebody else may be making it.
        for _ in 0..50 {
            if path.exists() || !self.root.join(name).exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        if path.exists() { read_json(&path) } else { Err(missing()) }
    }

    /// Where a volume's files are.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        let device = self.get(name).ok().and_then(|mut volume| volume.options.remove("device"));
        device.map_or_else(|| self.root.join(name).join("_data"), PathBuf::from)
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &self.root)?,
        };
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names.iter().filter(|name| is_name(name)).filter_map(|name| self.get(name).ok()).collect())
    }

    /// Removes a volume that nobody uses.
    pub fn remove(&self, name: &str) -> Result<()> {
        let directory = self.root.join(name);
        let gone = self.root.join(format!(".gone-{}-{}", std::process::id(), clock::now().1));
        match fs::rename(&directory, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved.at("remove", &directory)?,
        }
        fs::remove_dir_all(&gone).at("remove", &gone)
    }

    /// Removes what killed processes were about to remove.
    pub(super) fn sweep(&self) {
        super::files::sweep(&self.root);
    }

    /// The ids of containers that have the volume.
    pub fn users(&self, containers: &Containers, name: &str) -> Result<Vec<String>> {
        let all = containers.list()?.into_iter().map(|found| found.container);
        let using = all.filter(|one| one.mounts.iter().any(|mount| mount.kind == "volume" && mount.name == name));
        Ok(using.map(|one| one.id).collect())
    }
}
