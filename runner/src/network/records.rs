//! Networks and endpoints as files.
//!
//! ```text
//! ROOT/networks/
//!   lock                     held while anything here is changed
//!   ID.json                  a network; ID has 64 hexadecimal digits
//!   ID/CONTAINER.json        an endpoint: a container's place in a network
//!   running/CONTAINER        published ports; locked by the process that a container's network lives with
//! ```
//!
//! Files are replaced by renaming, so a reader needs no lock. An endpoint counts only while its container's file is locked:
//! what a killed process leaves is removed by the next change.

use super::address::Net4;
use super::error::{NetworkError, Trying};
use super::ports::PortBinding;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// How a network works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge of the host's.
    Bridge,
    /// The host's own network.
    Host,
    /// Loopback only.
    #[serde(rename = "null")]
    None,
}

impl Driver {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Bridge => "bridge",
            Driver::Host => "host",
            Driver::None => "null",
        }
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name; no other has it.
    pub name: String,
    /// How it works.
    pub driver: Driver,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// Addresses of containers and of the host; none but with a bridge.
    pub addresses: Option<Addresses>,
    /// There is no way out.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    pub options: BTreeMap<String, String>,
}

/// Addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// All of them.
    pub subnet: Net4,
    /// The host's.
    pub gateway: Ipv4Addr,
    /// Where those of containers are taken from, if not from all.
    pub range: Option<Net4>,
    /// Nobody asked for this subnet.
    #[serde(default)]
    pub chosen: bool,
}

impl NetworkRecord {
    /// Whether it is one of the three that are always there.
    #[must_use]
    pub fn is_predefined(&self) -> bool {
        PREDEFINED.iter().any(|(name, _)| *name == self.name)
    }

    /// Whether containers find each other by name there: on all bridges but the default one.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.driver == Driver::Bridge && !self.is_predefined()
    }

    /// Name of its bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("{BRIDGE_PREFIX}{}", &self.id[..12])
    }
}

/// The option of a network that says how large packets may be.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// Names of bridges begin so.
pub(super) const BRIDGE_PREFIX: &str = "xb-";

/// Networks that are always there.
pub(super) const PREDEFINED: [(&str, Driver); 3] =
    [("bridge", Driver::Bridge), ("host", Driver::Host), ("none", Driver::None)];

/// A container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The network's ID.
    pub network: String,
    /// The network's name.
    pub network_name: String,
    /// The container's ID.
    pub container: String,
    /// The container's name.
    pub container_name: String,
    /// Further names of the container there.
    pub aliases: Vec<String>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The host; none in an internal network.
    pub gateway: Option<Ipv4Addr>,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Name of the link in the container: `eth0`, `eth1` …
    pub link: String,
    /// Name of its other end.
    pub host_link: String,
}

impl Endpoint {
    /// The hardware address as text.
    #[must_use]
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The directory of networks.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

/// Nobody else changes anything while this lives.
#[derive(Debug)]
pub(super) struct Exclusive {
    _lock: File,
}

impl Records {
    /// That of a store; made if it is not there.
    pub(super) fn open(root: &Path) -> Result<Self, NetworkError> {
        let directory = root.join("networks");
        let running = directory.join("running");
        fs::create_dir_all(&running).trying(|| format!("make `{}`", running.display()))?;
        Ok(Self { directory })
    }

    /// Waits until nobody else changes anything.
    pub(super) fn lock(&self) -> Result<Exclusive, NetworkError> {
        let path = self.directory.join("lock");
        let step = || format!("lock `{}`", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path).trying(step)?;
        flock(&file, FlockOperation::LockExclusive).trying(step)?;
        Ok(Exclusive { _lock: file })
    }

    /// Takes a further lock, if nobody has it.
    pub(super) fn try_lock(&self, name: &str) -> Result<Option<File>, NetworkError> {
        try_lock(&self.directory.join(name))
    }

    /// All networks, by name.
    pub(super) fn networks(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        let mut all: Vec<NetworkRecord> = read_all(&self.directory)?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Files of networks that are none; with `repair` they are removed.
    pub(super) fn broken(&self, repair: bool) -> Result<Vec<PathBuf>, NetworkError> {
        let mut broken = Vec::new();
        for path in documents(&self.directory)? {
            let bytes = fs::read(&path).trying(|| format!("read `{}`", path.display()))?;
            if serde_json::from_slice::<NetworkRecord>(&bytes).is_err() {
                if repair {
                    fs::remove_file(&path).trying(|| format!("remove `{}`", path.display()))?;
                }
                broken.push(path);
            }
        }
        Ok(broken)
    }

    /// Whether the directory is still there.
    pub(super) fn are_there(&self) -> bool {
        self.directory.exists()
    }

    /// Writes a network.
    pub(super) fn put_network(&self, network: &NetworkRecord) -> Result<(), NetworkError> {
        write(&self.directory.join(format!("{}.json", network.id)), network)
    }

    /// Removes a network, which has no endpoints.
    pub(super) fn remove_network(&self, id: &str) -> Result<(), NetworkError> {
        let path = self.directory.join(format!("{id}.json"));
        let _ = fs::remove_dir(self.directory.join(id));
        fs::remove_file(&path).trying(|| format!("remove `{}`", path.display()))
    }

    /// Endpoints of a network, also those that nobody holds any more.
    pub(super) fn endpoints(&self, network: &str) -> Result<Vec<Endpoint>, NetworkError> {
        let mut all: Vec<Endpoint> = read_all(&self.directory.join(network))?;
        all.sort_by_key(|endpoint| endpoint.address);
        Ok(all)
    }

    /// Writes an endpoint.
    pub(super) fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        let directory = self.directory.join(&endpoint.network);
        fs::create_dir_all(&directory).trying(|| format!("make `{}`", directory.display()))?;
        write(&directory.join(format!("{}.json", endpoint.container)), endpoint)
    }

    /// Forgets an endpoint.
    pub(super) fn remove_endpoint(&self, endpoint: &Endpoint) {
        let path = self.directory.join(&endpoint.network).join(format!("{}.json", endpoint.container));
        // What stays does not count when its container has ended, and goes with the next change.
        let _ = fs::remove_file(path);
    }

    /// Locks a container's file: its endpoints count while the lock is held. None if another process holds it.
    pub(super) fn hold(&self, container: &str) -> Result<Option<File>, NetworkError> {
        try_lock(&self.directory.join("running").join(container))
    }

    /// Writes down a container's ports, in the file that the caller holds.
    pub(super) fn put_ports(&self, container: &str, ports: &[PortBinding]) -> Result<(), NetworkError> {
        let path = self.directory.join("running").join(container);
        let step = || format!("write `{}`", path.display());
        // In place: the lock is on this file. One short write, which a reader sees whole or not at all.
        let bytes = serde_json::to_vec(ports).map_err(io::Error::from).trying(step)?;
        fs::write(&path, bytes).trying(step)
    }

    /// Reads what was written there; none if it is not there yet.
    pub(super) fn ports(&self, container: &str) -> Vec<PortBinding> {
        let bytes = fs::read(self.directory.join("running").join(container)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Forgets a container's file; to be called while it is held or after its holder has ended.
    pub(super) fn release(&self, container: &str) {
        // An unlocked file says the same.
        let _ = fs::remove_file(self.directory.join("running").join(container));
    }

    /// Whether some process holds a container's file.
    pub(super) fn is_held(&self, container: &str) -> bool {
        let Ok(file) = File::open(self.directory.join("running").join(container)) else {
            return false;
        };
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }
}

fn try_lock(path: &Path) -> Result<Option<File>, NetworkError> {
    let step = || format!("lock `{}`", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(path).trying(step)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).trying(step),
    }
}

/// Every `*.json` of a directory, which need not be there.
fn documents(directory: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let step = || format!("read `{}`", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer.trying(step)?,
    };
    let mut paths = entries.map(|entry| Ok(entry.trying(step)?.path())).collect::<Result<Vec<_>, NetworkError>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    Ok(paths)
}

/// Reads every `*.json` of a directory. A file that goes away meanwhile was removed.
fn read_all<T: DeserializeOwned>(directory: &Path) -> Result<Vec<T>, NetworkError> {
    let mut all = Vec::new();
    for path in documents(directory)? {
        match fs::read(&path) {
            Ok(bytes) => all.push(
                serde_json::from_slice(&bytes)
                    .map_err(io::Error::from)
                    .trying(|| format!("understand `{}`", path.display()))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).trying(|| format!("read `{}`", path.display())),
        }
    }
    Ok(all)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), NetworkError> {
    let step = || format!("write `{}`", path.display());
    let bytes = serde_json::to_vec(value).map_err(io::Error::from).trying(step)?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, path)).trying(step)
}
