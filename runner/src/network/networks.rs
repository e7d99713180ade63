//! The networks of a store: making, finding and removing them.

use super::address::Net4;
use super::bridge;
use super::error::NetworkError;
use super::links::Links;
use super::records::{Addresses, Driver, Endpoint, Exclusive, NetworkRecord, PREDEFINED, Records};
use crate::network::error::Trying;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Networks that subnets are cut out of for those that ask for none: docker's, without 172.16.0.0/16.
const POOLS: [([u8; 4], u8); 5] = [
    ([172, 17, 0, 0], 16),
    ([172, 18, 0, 0], 15),
    ([172, 20, 0, 0], 14),
    ([172, 24, 0, 0], 13),
    ([192, 168, 0, 0], 16),
];
/// Room for 4093 containers.
const SUBNET_PREFIX: u8 = 20;

/// How long an unused bridge stays.
const LINGER: Duration = Duration::from_secs(1);

/// The networks of a store. Several processes may use one store's networks at once.
#[derive(Clone, Debug)]
pub struct Networks {
    pub(super) records: Records,
    clock: fn() -> String,
}

/// What a network is to be.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses; a free subnet if none.
    pub subnet: Option<Net4>,
    /// The host's address; the subnet's first if none.
    pub gateway: Option<Ipv4Addr>,
    /// Where addresses of containers are taken from.
    pub range: Option<Net4>,
    /// There is no way out.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, kept as they are.
    pub options: BTreeMap<String, String>,
}

impl Networks {
    /// The networks of the store at `root`. `clock` gives the time in RFC 3339.
    pub fn open(root: &Path, clock: fn() -> String) -> Result<Self, NetworkError> {
        Ok(Self { records: Records::open(root)?, clock })
    }

    /// Files of networks that cannot be understood, which keep all networks from being used. With `repair` they are removed, and
    /// the networks with them.
    pub fn check(&self, repair: bool) -> Result<Vec<PathBuf>, NetworkError> {
        let _lock = self.records.lock()?;
        self.records.broken(repair)
    }

    /// All networks, by name; `bridge`, `host` and `none` are among them.
    pub fn list(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        let all = self.records.networks()?;
        if PREDEFINED.iter().all(|(name, _)| all.iter().any(|network| network.name == *name)) {
            return Ok(all);
        }
        let lock = self.records.lock()?;
        let known = self.records.networks()?;
        for (name, driver) in PREDEFINED {
            if !known.iter().any(|network| network.name == name) {
                self.add(&lock, NewNetwork { name: name.to_owned(), ..NewNetwork::default() }, driver)?;
            }
        }
        self.records.networks()
    }

    /// Finds a network by its name, its ID, or the first digits of the ID if no other begins so. `default` is `bridge`.
    pub fn find(&self, name: &str) -> Result<NetworkRecord, NetworkError> {
        let name = if name == "default" { "bridge" } else { name };
        let all = self.list()?;
        if let Some(found) = all.iter().find(|network| network.name == name || network.id == name) {
            return Ok(found.clone());
        }
        let mut beginning = all.iter().filter(|network| !name.is_empty() && network.id.starts_with(name));
        match (beginning.next(), beginning.next()) {
            (Some(found), None) => Ok(found.clone()),
            (Some(_), Some(_)) => Err(NetworkError::Ambiguous(name.to_owned())),
            (None, _) => Err(NetworkError::NotFound(name.to_owned())),
        }
    }

    /// Makes a network.
    pub fn create(&self, new: NewNetwork) -> Result<NetworkRecord, NetworkError> {
        let known = self.list()?;
        let lock = self.records.lock()?;
        check_name(&new.name)?;
        if known.iter().chain(&self.records.networks()?).any(|network| network.name == new.name) {
            return Err(NetworkError::Exists(new.name));
        }
        self.add(&lock, new, Driver::Bridge)
    }

    /// Removes a network that no container uses.
    pub fn remove(&self, name: &str) -> Result<NetworkRecord, NetworkError> {
        let network = self.find(name)?;
        if network.is_predefined() {
            return Err(NetworkError::Predefined(network.name));
        }
        let lock = self.records.lock()?;
        if !self.live_endpoints(&lock, &network.id)?.is_empty() {
            return Err(NetworkError::InUse { name: network.name, id: network.id });
        }
        bridge::remove_unused(&network)?;
        self.records.remove_network(&network.id)?;
        Ok(network)
    }

    /// Endpoints of running containers in a network, by address.
    pub fn endpoints(&self, network: &NetworkRecord) -> Result<Vec<Endpoint>, NetworkError> {
        let mut all = self.records.endpoints(&network.id)?;
        all.retain(|endpoint| self.records.is_held(&endpoint.container));
        Ok(all)
    }

    /// Endpoints of a running container, in the order of its links.
    pub fn endpoints_of(&self, container: &str) -> Result<Vec<Endpoint>, NetworkError> {
        let mut found = Vec::new();
        for network in self.list()? {
            found.extend(self.endpoints(&network)?.into_iter().filter(|endpoint| endpoint.container == container));
        }
        found.sort_by(|a, b| a.link.cmp(&b.link));
        Ok(found)
    }

    /// Removes what containers left whose processes were killed, and bridges that nobody uses any more. Takes tens of
    /// milliseconds for each bridge; to be called when nobody waits.
    pub fn sweep(&self) -> Result<(), NetworkError> {
        let lock = self.records.lock()?;
        for network in self.records.networks()? {
            if network.driver == Driver::Bridge && self.live_endpoints(&lock, &network.id)?.is_empty() {
                bridge::remove_unused(&network)?;
            }
        }
        Ok(())
    }

    /// Removes bridges that nobody has used for a second. At most one process does so at a time; the others return at once,
    /// since it waits for their networks, too.
    pub fn sweep_when_idle(&self) -> Result<(), NetworkError> {
        let Some(alone) = self.records.try_lock("sweeper")? else {
            return Ok(());
        };
        let known = self.records.networks()?;
        // A command after another finds the bridge of the one before.
        std::thread::sleep(LINGER);
        if !self.records.are_there() {
            // Somebody has removed the store: nobody else will ever look after its bridges.
            for network in known.iter().filter(|network| network.driver == Driver::Bridge) {
                bridge::remove_unused(network)?;
            }
            return Ok(());
        }
        self.sweep()?;
        drop(alone);
        // For who came when we had looked, and went because we were still here.
        self.sweep()
    }

    /// Endpoints that somebody holds; the others are removed.
    pub(super) fn live_endpoints(&self, _: &Exclusive, network: &str) -> Result<Vec<Endpoint>, NetworkError> {
        let (live, dead): (Vec<_>, Vec<_>) = self
            .records
            .endpoints(network)?
            .into_iter()
            .partition(|endpoint| self.records.is_held(&endpoint.container));
        for endpoint in dead {
            self.records.remove_endpoint(&endpoint);
            self.records.release(&endpoint.container);
        }
        Ok(live)
    }

    fn add(&self, lock: &Exclusive, new: NewNetwork, driver: Driver) -> Result<NetworkRecord, NetworkError> {
        let addresses = match driver {
            Driver::Bridge => Some(self.addresses(lock, &new)?),
            Driver::Host | Driver::None => None,
        };
        let network = NetworkRecord {
            id: super::random_id(),
            name: new.name,
            driver,
            created: (self.clock)(),
            addresses,
            internal: new.internal,
            labels: new.labels,
            options: new.options,
        };
        self.records.put_network(&network)?;
        Ok(network)
    }

    /// Gives a network that nobody uses, and that asked for no subnet, another one where the host has come to use its own.
    pub(super) fn move_if_taken(&self, lock: &Exclusive, network: &mut NetworkRecord) -> Result<(), NetworkError> {
        let Some(Addresses { subnet, chosen: true, .. }) = network.addresses else {
            return Ok(());
        };
        if bridge::is_there(network)? || !is_routed(subnet)? {
            return Ok(());
        }
        network.addresses = Some(self.addresses(lock, &NewNetwork::default())?);
        self.records.put_network(network)
    }

    fn addresses(&self, _: &Exclusive, new: &NewNetwork) -> Result<Addresses, NetworkError> {
        let invalid = |text: String| Err(NetworkError::Invalid(text));
        let taken: Vec<Net4> =
            self.records.networks()?.into_iter().filter_map(|n| n.addresses.map(|a| a.subnet)).collect();
        let subnet = match new.subnet {
            Some(subnet) if subnet.prefix() > 30 => {
                return invalid(format!("subnet {subnet} has no room for containers"));
            }
            Some(subnet) if taken.iter().any(|other| other.overlaps(subnet)) => {
                return Err(NetworkError::Overlap(subnet));
            }
            Some(subnet) => subnet,
            None if new.gateway.is_some() || new.range.is_some() => {
                return invalid("a gateway or a range of addresses needs a subnet: give --subnet".to_owned());
            }
            None => free_subnet(&taken)?,
        };
        let gateway = new.gateway.or_else(|| subnet.hosts().next()).unwrap_or(subnet.first());
        if !subnet.contains(gateway) || gateway == subnet.first() || gateway == subnet.last() {
            return invalid(format!("no matching subnet for gateway {gateway}"));
        }
        if let Some(range) = new.range.filter(|range| !subnet.includes(*range)) {
            return invalid(format!("no matching subnet for range {range}"));
        }
        Ok(Addresses { subnet, gateway, range: new.range, chosen: new.subnet.is_none() })
    }
}

/// A subnet that neither a network nor a route of the host has.
fn free_subnet(taken: &[Net4]) -> Result<Net4, NetworkError> {
    let mut taken = taken.to_vec();
    taken.extend(routed()?);
    let is_free = |subnet: &Net4| !taken.iter().any(|other| other.overlaps(*subnet));
    let mut all: Vec<Net4> = POOLS.into_iter().flat_map(pieces).collect();
    // Anywhere: other stores on this host look for one, too, and theirs shows only while it is used.
    let start = super::random_number() as usize % all.len();
    all.rotate_left(start);
    all.into_iter().find(is_free).ok_or(NetworkError::Exhausted("subnet"))
}

/// Where the host's routes lead, but the default one.
fn routed() -> Result<Vec<Net4>, NetworkError> {
    let mut links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
    let routes = links.routes().trying(|| "list the host's routes".to_owned())?;
    Ok(routes.into_iter().map(|route| route.to).filter(|net| net.prefix() > 0).collect())
}

fn is_routed(subnet: Net4) -> Result<bool, NetworkError> {
    Ok(routed()?.into_iter().any(|net| net.overlaps(subnet)))
}

/// A pool cut into subnets.
fn pieces((first, prefix): ([u8; 4], u8)) -> impl Iterator<Item = Net4> {
    let first = Ipv4Addr::from(first).to_bits();
    let count = 1u32 << (SUBNET_PREFIX - prefix);
    (0..count).map(move |n| Net4::new(Ipv4Addr::from_bits(first + (n << (32 - SUBNET_PREFIX))), SUBNET_PREFIX))
}

/// Docker's rule for names.
fn check_name(name: &str) -> Result<(), NetworkError> {
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    let reserved = ["default", "container"].contains(&name);
    if good && !reserved {
        return Ok(());
    }
    Err(NetworkError::Invalid(format!(
        "invalid network name `{name}`: letters, digits, and then also `_.-` can be used"
    )))
}
