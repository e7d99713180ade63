//! Networks of running containers.

use super::bridge;
use super::dns;
use super::error::{NetworkError, Trying};
use super::links::{Links, Peer};
use super::names::Names;
use super::namespace::{self, Namespace, is_ours, on_a_thread};
use super::networks::Networks;
use super::ports::{PortBinding, PortRequest, Published};
use super::records::{Addresses, Driver, Endpoint, Exclusive, NetworkRecord};
use super::resolver::Resolvers;
use super::usermode::{self, Outlet};
use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// What a container's network is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// The container's ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Networks it is in; those of [`Driver::Bridge`] only. The first has the default route and the published ports.
    pub endpoints: Vec<EndpointRequest>,
    /// Ports to publish.
    pub ports: Vec<PortRequest>,
    /// Name servers to ask: the host's, or those of `--dns`.
    pub resolvers: Resolvers,
}

/// A network that a container is to be in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The network, by name or ID.
    pub network: String,
    /// Further names of the container there.
    pub aliases: Vec<String>,
    /// Its address; any that is free if none.
    pub address: Option<Ipv4Addr>,
    /// Its hardware address; one that follows from the address if none.
    pub mac: Option<[u8; 6]>,
}

/// A network namespace as containers have it, with the sockets of a name server, that no network leads to yet.
#[derive(Debug)]
pub struct PreparedNetwork {
    namespace: Namespace,
    sockets: dns::Sockets,
}

impl PreparedNetwork {
    /// Makes it. Blocks for a moment; its thread has ended when this returns.
    pub fn new() -> Result<PreparedNetwork, NetworkError> {
        let (namespace, sockets) = on_a_thread(Namespace::prepare)?;
        Ok(PreparedNetwork { namespace, sockets })
    }

    /// Where the container's processes are to be.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// The network of a running container. It is there while this lives, which is up to the process that lives as long as
/// the container: when that is killed, ports, rules and addresses are free again.
///
/// It has a name server, which is to be waited for: [`Attachment::waits_for`], [`Attachment::deadline`],
/// [`Attachment::turn`]. It has no threads.
#[derive(Debug)]
pub struct Attachment {
    networks: Networks,
    container: String,
    namespace: Namespace,
    endpoints: Vec<Endpoint>,
    published: Published,
    dns: dns::Service,
    _outlet: Option<Outlet>,
    /// Locked: endpoints count while it is.
    _held: File,
}

impl Attachment {
    /// Where the container's processes are to be.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Published ports, with those of the host that were found.
    #[must_use]
    pub fn ports(&self) -> &[PortBinding] {
        self.published.bindings()
    }

    /// The places in networks that the container started with; [`Networks::endpoints_of`] knows those of now.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What the name server waits for.
    pub fn waits_for(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.dns.waits_for()
    }

    /// Until when it waits at most.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.dns.deadline()
    }

    /// Lets the name server do what it can without waiting.
    pub fn turn(&mut self) {
        self.dns.turn();
    }

    /// Frees addresses, names and ports, and gives the places that the container had last. Bridges that nobody uses any more
    /// stay until [`Networks::sweep`], which is slow.
    pub fn detach(self) -> Result<Vec<Endpoint>, NetworkError> {
        let _lock = self.networks.records.lock()?;
        let endpoints = self.networks.endpoints_of(&self.container)?;
        endpoints.iter().for_each(|endpoint| self.networks.records.remove_endpoint(endpoint));
        self.networks.records.release(&self.container);
        Ok(endpoints)
    }
}

impl Networks {
    /// Makes the network of a container that is about to start. Blocks for some milliseconds; its threads have ended when
    /// it returns.
    ///
    /// Addresses and ports that are taken are errors, and then nothing is left.
    pub fn attach(&self, wanted: &ContainerNetwork) -> Result<Attachment, NetworkError> {
        self.attach_prepared(wanted, PreparedNetwork::new()?)
    }

    /// The same of what is `prepared`.
    pub fn attach_prepared(
        &self,
        wanted: &ContainerNetwork,
        prepared: PreparedNetwork,
    ) -> Result<Attachment, NetworkError> {
        let published = Published::reserve(&wanted.ports)?;
        let networks = wanted.endpoints.iter().map(|request| Ok((self.bridged(&request.network)?, request)));
        let networks = networks.collect::<Result<Vec<_>, NetworkError>>()?;
        // A network without a way out has none for questions either.
        let closed = networks.iter().all(|(network, _)| network.internal);
        let upstream = if closed { Vec::new() } else { wanted.resolvers.upstream() };
        let PreparedNetwork { namespace, sockets } = prepared;
        let names = Arc::new(Names::new(self.clone(), &wanted.id));
        let lock = self.records.lock()?;
        let held = self.records.hold(&wanted.id)?.ok_or_else(|| NetworkError::Attached(wanted.name.clone()))?;
        // Of a holder that was killed; they would count again from now on.
        self.endpoints_of(&wanted.id)?.iter().for_each(|endpoint| self.records.remove_endpoint(endpoint));
        let mut attachment = Attachment {
            networks: self.clone(),
            container: wanted.id.clone(),
            namespace,
            endpoints: Vec::new(),
            published,
            dns: dns::Service::new(sockets, upstream).with_names(names),
            _outlet: None,
            _held: held,
        };
        let container = (wanted.id.as_str(), wanted.name.as_str());
        let plugged = match is_ours() {
            true => self.plug_all(&lock, networks, container, &mut attachment),
            false => self.connect_outside(networks, container, &mut attachment),
        };
        let done = plugged.and_then(|()| self.records.put_ports(&wanted.id, attachment.published.bindings()));
        drop(lock);
        match done {
            Ok(()) => Ok(attachment),
            Err(error) => {
                // What cannot be removed does not count once this process has let go of it.
                let _ = attachment.detach();
                Err(error)
            }
        }
    }

    fn plug_all(
        &self,
        lock: &Exclusive,
        networks: Vec<(NetworkRecord, &EndpointRequest)>,
        container: (&str, &str),
        attachment: &mut Attachment,
    ) -> Result<(), NetworkError> {
        for (network, request) in networks {
            let endpoint = self.plug(lock, network, request, container, attachment.namespace.as_fd())?;
            attachment.endpoints.push(endpoint);
        }
        match attachment.endpoints.first() {
            Some(endpoint) => attachment.published.lead_to(container.0, endpoint.address),
            None => Ok(()),
        }
    }

    /// The only network there is for those who may not change the host's: one with a way out, but none to other containers.
    fn connect_outside(
        &self,
        networks: Vec<(NetworkRecord, &EndpointRequest)>,
        (container, container_name): (&str, &str),
        attachment: &mut Attachment,
    ) -> Result<(), NetworkError> {
        let Some((network, request)) = networks.into_iter().next() else {
            return Ok(());
        };
        if !network.is_predefined() {
            return Err(NetworkError::Rootless(network.name));
        }
        if request.address.is_some() || request.mac.is_some() {
            return Err(NetworkError::Invalid("without root a container cannot choose its address".to_owned()));
        }
        let ports = attachment.published.hand_over();
        attachment._outlet = Some(Outlet::connect(&attachment.namespace, &ports)?);
        let [a, b, c, d] = usermode::ADDRESS.octets();
        let endpoint = Endpoint {
            id: super::random_id(),
            network: network.id,
            network_name: network.name,
            container: container.to_owned(),
            container_name: container_name.to_owned(),
            aliases: Vec::new(),
            address: usermode::ADDRESS,
            prefix: usermode::PREFIX,
            gateway: Some(usermode::host_address().unwrap_or(usermode::GATEWAY)),
            mac: [2, 0x42, a, b, c, d],
            link: usermode::LINK.to_owned(),
            host_link: String::new(),
        };
        self.records.put_endpoint(&endpoint)?;
        attachment.endpoints.push(endpoint);
        Ok(())
    }

    /// What `/etc/resolv.conf` says in a container, which depends on the networks that it is in.
    pub fn resolv_conf(&self, endpoints: &[Endpoint], resolvers: &Resolvers) -> Result<Vec<u8>, NetworkError> {
        let named = self.list()?.into_iter().filter(NetworkRecord::has_names);
        let is_named = named.map(|network| network.id).any(|id| endpoints.iter().any(|e| e.network == id));
        Ok(if is_named { resolvers.forwarded() } else { resolvers.inside() })
    }

    /// Published ports of a running container.
    pub fn ports_of(&self, container: &str) -> Vec<PortBinding> {
        if self.records.is_held(container) { self.records.ports(container) } else { Vec::new() }
    }

    /// Puts a running container into a further network.
    pub fn connect(
        &self,
        container: (&str, &str),
        namespace: OwnedFd,
        request: &EndpointRequest,
    ) -> Result<Endpoint, NetworkError> {
        let network = self.bridged(&request.network)?;
        if !is_ours() {
            return Err(NetworkError::Rootless(network.name));
        }
        let lock = self.records.lock()?;
        if !self.records.is_held(container.0) {
            return Err(NetworkError::NotRunning(container.1.to_owned()));
        }
        self.plug(&lock, network, request, container, namespace.as_fd())
    }

    /// Takes a running container out of a network.
    pub fn disconnect(&self, container: (&str, &str), network: &str) -> Result<(), NetworkError> {
        let network = self.find(network)?;
        if !is_ours() {
            return Err(NetworkError::Rootless(network.name));
        }
        let lock = self.records.lock()?;
        let mut endpoints = self.live_endpoints(&lock, &network.id)?.into_iter();
        let endpoint = endpoints.find(|endpoint| endpoint.container == container.0).ok_or_else(|| {
            NetworkError::NotConnected { container: container.1.to_owned(), network: network.name.clone() }
        })?;
        let mut links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
        match links.remove(&endpoint.host_link) {
            Ok(()) | Err(Errno::NODEV) => {}
            Err(error) => return Err(error).trying(|| format!("remove the link `{}`", endpoint.host_link)),
        }
        self.records.remove_endpoint(&endpoint);
        Ok(())
    }

    /// Gives a running container another name in all its networks.
    pub fn rename(&self, container: &str, name: &str) -> Result<(), NetworkError> {
        let _lock = self.records.lock()?;
        for mut endpoint in self.endpoints_of(container)? {
            endpoint.container_name = name.to_owned();
            self.records.put_endpoint(&endpoint)?;
        }
        Ok(())
    }

    /// A network in which containers can have a place.
    fn bridged(&self, name: &str) -> Result<NetworkRecord, NetworkError> {
        let network = self.find(name)?;
        match network.driver {
            Driver::Bridge => Ok(network),
            Driver::Host | Driver::None => {
                Err(NetworkError::Invalid(format!("a container cannot be connected to the network `{name}`")))
            }
        }
    }

    fn plug(
        &self,
        lock: &Exclusive,
        mut network: NetworkRecord,
        request: &EndpointRequest,
        (container, container_name): (&str, &str),
        namespace: BorrowedFd<'_>,
    ) -> Result<Endpoint, NetworkError> {
        let live = self.live_endpoints(lock, &network.id)?;
        if live.iter().any(|endpoint| endpoint.container == container) {
            return Err(NetworkError::Connected {
                container: container_name.to_owned(),
                network: network.name.clone(),
            });
        }
        if live.is_empty() {
            self.move_if_taken(lock, &mut network)?;
        }
        let network = &network;
        let addresses = network.addresses.as_ref().ok_or(NetworkError::Exhausted("address in the network"))?;
        let address = choose_address(network, addresses, request.address, &live)?;
        let mut links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
        let bridge = bridge::ensure(network, addresses, &mut links)?;
        let id = super::random_id();
        let host_link = format!("veth{}", &id[..8]);
        let [a, b, c, d] = address.octets();
        let mut endpoint = Endpoint {
            id,
            network: network.id.clone(),
            network_name: network.name.clone(),
            container: container.to_owned(),
            container_name: container_name.to_owned(),
            aliases: request.aliases.clone(),
            address,
            prefix: addresses.subnet.prefix(),
            gateway: (!network.internal).then_some(addresses.gateway),
            mac: request.mac.unwrap_or([2, 0x42, a, b, c, d]),
            link: String::new(),
            host_link,
        };
        let inside = on_a_thread(|| namespace::visit(namespace, Links::open))?;
        let mut inside = inside.trying(|| "open a socket to the container's links".to_owned())?;
        endpoint.link = free_link(&inside)?;
        let peer = Peer { name: &endpoint.link, namespace, mac: Some(endpoint.mac) };
        let mtu = links.mtu(bridge).trying(|| "look at the bridge".to_owned())?;
        links.add_pair(&endpoint.host_link, &peer, mtu).trying(|| format!("make the link `{}`", endpoint.host_link))?;
        let mut set_up = || -> Result<(), Errno> {
            let index = links.index(&endpoint.host_link)?;
            links.start(index, Some(bridge))?;
            links.allow_hairpin(index)?;
            let index = inside.index(&endpoint.link)?;
            inside.start(index, None)?;
            inside.add_address(index, address, endpoint.prefix)?;
            match endpoint.gateway.map(|gateway| inside.add_default_route(gateway)) {
                // The first network has it.
                None | Some(Ok(()) | Err(Errno::EXIST)) => Ok(()),
                Some(Err(error)) => Err(error),
            }
        };
        let done = set_up().trying(|| format!("set up the link `{}` of {container_name}", endpoint.link));
        let done = done.and_then(|()| self.records.put_endpoint(&endpoint));
        if done.is_err() {
            let _ = links.remove(&endpoint.host_link);
        }
        done.map(|()| endpoint)
    }
}

fn choose_address(
    network: &NetworkRecord,
    addresses: &Addresses,
    wanted: Option<Ipv4Addr>,
    live: &[Endpoint],
) -> Result<Ipv4Addr, NetworkError> {
    let is_taken = |address: Ipv4Addr| address == addresses.gateway || live.iter().any(|e| e.address == address);
    let subnet = addresses.subnet;
    match wanted {
        Some(address) if !subnet.contains(address) || address == subnet.first() || address == subnet.last() => Err(
            NetworkError::Invalid(format!("no configured subnet of `{}` contains the address {address}", network.name)),
        ),
        Some(address) if is_taken(address) => Err(NetworkError::AddressTaken(address)),
        Some(address) => Ok(address),
        None => {
            let range = addresses.range.unwrap_or(subnet);
            let limits = [subnet.first(), subnet.last()];
            let mut all = range.addresses().filter(|address| !limits.contains(address));
            all.find(|address| !is_taken(*address)).ok_or(NetworkError::Exhausted("address in the network"))
        }
    }
}

/// The first name that no link has.
fn free_link(inside: &Links) -> Result<String, NetworkError> {
    for n in 0.. {
        let name = format!("eth{n}");
        match inside.index(&name) {
            Ok(_) => {}
            Err(Errno::NODEV) => return Ok(name),
            Err(error) => return Err(error).trying(|| "look at the container's links".to_owned()),
        }
    }
    Err(NetworkError::Exhausted("name for a link"))
}
