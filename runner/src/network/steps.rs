//! Networks of RUN steps: a namespace for each, made ahead of its use.
//!
//! A step's namespace has one link, whose other end is the host's: no bridge, since steps have nothing to say to each
//! other. The host's end is called `xbr-` and its network's address in hexadecimal digits, so that the kernel, which
//! allows a name once, hands out addresses to all processes of all stores. Nothing needs to be cleaned up: a link goes
//! with its namespace, a namespace with the last descriptor and process, and the table of nf_tables, one a process,
//! belongs to a socket and goes with that, also when the process is killed.

use super::address::Net4;
use super::dns;
use super::error::{NetworkError, Trying};
use super::firewall::{self, Link};
use super::links::{Links, Peer};
use super::namespace::{Home, Namespace, is_ours, on_a_thread};
use super::nftables::{Batch, Filters, Hook, Rule};
use super::usermode::{self, Outlet};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};

/// Networks that steps' networks are cut out of; the first that no route of the host leads into.
const POOLS: [[u8; 4]; 6] =
    [[10, 207, 0, 0], [10, 83, 0, 0], [172, 30, 0, 0], [172, 19, 0, 0], [192, 168, 0, 0], [198, 18, 0, 0]];
const POOL_PREFIX: u8 = 16;
/// Network, host, step, broadcast.
const STEP_PREFIX: u8 = 30;
/// Names of the host's ends begin so.
const LINK_PREFIX: &str = "xbr-";
/// Most namespaces that are made ahead.
const AHEAD: usize = 4;

/// What a step gets. The namespace goes with this value and the processes in it.
#[derive(Debug)]
pub struct StepNetwork {
    namespace: Namespace,
    gateway: Ipv4Addr,
    dns: Option<dns::Sockets>,
    _outlet: Option<Outlet>,
    shared: Arc<Shared>,
}

impl StepNetwork {
    /// Where its process is to be.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The host, seen from there.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Sockets of a name server inside, to be served.
    pub fn take_dns(&mut self) -> Option<dns::Sockets> {
        self.dns.take()
    }
}

impl Drop for StepNetwork {
    fn drop(&mut self) {
        self.shared.lock().live -= 1;
        self.shared.changed.notify_all();
    }
}

/// One that nobody has taken.
#[derive(Debug)]
struct Made {
    namespace: Namespace,
    gateway: Ipv4Addr,
    dns: Option<dns::Sockets>,
    outlet: Option<Outlet>,
}

/// Makes networks of steps on a thread of its own, which starts with the first request.
#[derive(Debug)]
pub struct StepNetworks {
    shared: Arc<Shared>,
    maker: Once,
    with_dns: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Requests that have not got theirs.
    waiting: usize,
    /// Requests that may still come.
    expected: usize,
    taken: usize,
    /// Networks that were taken and are in use.
    live: usize,
    ready: VecDeque<Made>,
    failed: Option<Arc<NetworkError>>,
}

impl State {
    /// How many are to be ready: those that are asked for, and some ahead where steps have come before.
    fn target(&self) -> usize {
        self.waiting + self.taken.min(self.expected).min(AHEAD)
    }

    /// Whether nobody uses a network, or will.
    fn is_idle(&self) -> bool {
        self.closed || self.waiting + self.expected + self.live == 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepNetworks {
    /// Nothing is made or opened yet. `with_dns` binds a name server's sockets in each namespace.
    #[must_use]
    pub fn new(with_dns: bool) -> Self {
        Self { shared: Arc::default(), maker: Once::new(), with_dns }
    }

    /// Says how many requests there will be at most, so that none is made that nobody can take.
    pub fn expect(&self, count: usize) {
        self.shared.lock().expected += count;
    }

    /// Asks for one, which is then made while the caller does something else.
    #[must_use]
    pub fn request(&self) -> Request {
        self.maker.call_once(|| self.start());
        let mut state = self.shared.lock();
        state.expected = state.expected.saturating_sub(1);
        state.waiting += 1;
        drop(state);
        self.shared.changed.notify_all();
        Request { shared: Arc::clone(&self.shared), open: true }
    }
}

impl StepNetworks {
    fn start(&self) {
        let (shared, with_dns) = (Arc::clone(&self.shared), self.with_dns);
        let make = move || make_all(&shared, with_dns);
        if let Err(source) = std::thread::Builder::new().name("networks".into()).spawn(make) {
            let error = NetworkError::Refused { action: "start a thread".to_owned(), source };
            self.shared.lock().failed = Some(Arc::new(error));
        }
    }
}

impl Drop for StepNetworks {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.ready.clear();
        drop(state);
        // The thread takes the table away meanwhile. Nobody waits for it: where the process ends first, the kernel does.
        self.shared.changed.notify_all();
    }
}

/// A network that was asked for; dropping it takes the request back.
#[derive(Debug)]
pub struct Request {
    shared: Arc<Shared>,
    open: bool,
}

impl Request {
    /// Blocks until it is there.
    pub fn wait(mut self) -> Result<StepNetwork, Arc<NetworkError>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(error) = &state.failed {
                return Err(Arc::clone(error));
            }
            if let Some(Made { namespace, gateway, dns, outlet }) = state.ready.pop_front() {
                state.waiting -= 1;
                state.taken += 1;
                state.live += 1;
                drop(state);
                self.open = false;
                self.shared.changed.notify_all();
                return Ok(StepNetwork { namespace, gateway, dns, _outlet: outlet, shared: Arc::clone(&self.shared) });
            }
            state = self.shared.wait(state);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.open {
            self.shared.lock().waiting -= 1;
            self.shared.changed.notify_all();
        }
    }
}

/// The thread. What fails once fails for all: the caller falls back, and says so once.
fn make_all(shared: &Shared, with_dns: bool) {
    if let Err(error) = try_make_all(shared, with_dns) {
        shared.lock().failed = Some(Arc::new(error));
        shared.changed.notify_all();
    }
}

fn try_make_all(shared: &Shared, with_dns: bool) -> Result<(), NetworkError> {
    // Where the host's network may not be changed, this thread stays in it.
    let home = if is_ours() { Some(Home::remember()?) } else { None };
    let mut maker = None;
    loop {
        let mut state = shared.lock();
        while state.ready.len() >= state.target() && !state.closed {
            // Before the process ends, if possible: the kernel takes its time over a table.
            if state.is_idle() && maker.is_some() {
                drop(state);
                maker = None;
                state = shared.lock();
            } else {
                state = shared.wait(state);
            }
        }
        if state.closed {
            return Ok(());
        }
        drop(state);
        let made = match &home {
            None => make_with_outlet(with_dns)?,
            Some(home) => {
                let maker = match &mut maker {
                    Some(maker) => maker,
                    none => {
                        home.enter()?;
                        none.insert(Maker::new()?)
                    }
                };
                maker.make(with_dns)?
            }
        };
        shared.lock().ready.push_back(made);
        shared.changed.notify_all();
    }
}

/// A namespace with a way out of its own.
fn make_with_outlet(with_dns: bool) -> Result<Made, NetworkError> {
    let (namespace, dns) = on_a_thread(|| {
        let (namespace, _) = Namespace::enter_new()?;
        let dns =
            with_dns.then(dns::Sockets::bind).transpose().trying(|| "bind a name server for a step".to_owned())?;
        Ok((namespace, dns))
    })?;
    let outlet = Outlet::connect(&namespace, &[])?;
    let gateway = usermode::host_address().unwrap_or(usermode::GATEWAY);
    Ok(Made { namespace, gateway, dns, outlet: Some(outlet) })
}

/// The host's side. Its thread leaves the host's namespace with the first network it makes.
struct Maker {
    links: Links,
    filters: Filters,
    table: String,
    pool: Net4,
    mtu: u32,
    /// Number of the last network that was tried; processes begin at different places, so that they seldom meet.
    next: u32,
}

impl Maker {
    fn new() -> Result<Self, NetworkError> {
        let mut filters = Filters::open().trying(|| "open a socket to nf_tables".to_owned())?;
        super::host::forward_packets()?;
        let mut links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
        let routes = links.routes().trying(|| "list the host's routes".to_owned())?;
        let mut pools = POOLS.into_iter().map(|first| Net4::new(first.into(), POOL_PREFIX));
        let ours = |link| links.name(link).is_ok_and(|name| name.starts_with(LINK_PREFIX));
        let pool = pools
            .find(|pool| !routes.iter().any(|r| r.to.prefix() > 0 && r.to.overlaps(*pool) && !ours(r.link)))
            .ok_or(NetworkError::Exhausted("private network for steps"))?;
        let mtu = links.mtu_of_default_route(&routes).trying(|| "look at the host's default route".to_owned())?;
        let table = format!("{}{}-{:04x}", firewall::STEPS, std::process::id(), super::random_number() & 0xffff);
        firewall::open(&mut filters, &table, &Link::Prefixed(LINK_PREFIX))?;
        filters.commit(rules(&table, pool)).trying(|| format!("make the table `{table}` of nf_tables"))?;
        Ok(Self { links, filters, table, pool, mtu, next: super::random_number() })
    }

    fn make(&mut self, with_dns: bool) -> Result<Made, NetworkError> {
        let (namespace, mut inside) = Namespace::enter_new()?;
        let (name, network) = self.connect(&namespace)?;
        let action = |what: &str| format!("{what} for the network {network} of a step");
        let [gateway, address] = [1, 2].map(|n| Ipv4Addr::from_bits(network.first().to_bits() + n));
        let mut set_up = || -> Result<(), Errno> {
            let index = self.links.index(&name)?;
            self.links.start(index, None)?;
            self.links.add_address(index, gateway, STEP_PREFIX)?;
            let index = inside.index("eth0")?;
            inside.start(index, None)?;
            inside.add_address(index, address, STEP_PREFIX)?;
            inside.add_default_route(gateway)
        };
        set_up().trying(|| action("set addresses"))?;
        let dns = if with_dns { Some(dns::Sockets::bind().trying(|| action("bind a name server"))?) } else { None };
        Ok(Made { namespace, gateway, dns, outlet: None })
    }

    /// Connects a namespace to the host, by a link whose name nobody has.
    fn connect(&mut self, namespace: &Namespace) -> Result<(String, Net4), NetworkError> {
        let count = 1u32 << (STEP_PREFIX - POOL_PREFIX);
        for _ in 0..count {
            self.next = self.next.wrapping_add(1) % count;
            let first = self.pool.first().to_bits() + (self.next << (32 - STEP_PREFIX));
            let name = format!("{LINK_PREFIX}{first:08x}");
            let peer = Peer { name: "eth0", namespace: namespace.as_fd(), mac: None };
            match self.links.add_pair(&name, &peer, self.mtu) {
                Ok(()) => return Ok((name, Net4::new(Ipv4Addr::from_bits(first), STEP_PREFIX))),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).trying(|| format!("make the link `{name}`")),
            }
        }
        Err(NetworkError::Exhausted("network for a step"))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // Closing the socket does the same, but the kernel is much slower then.
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        let _ = self.filters.commit(batch);
        let _ = firewall::close(&mut self.filters, &self.table);
    }
}

/// Steps reach what the host reaches, under its address; nobody reaches them.
fn rules(table: &str, pool: Net4) -> Batch {
    let steps = || Rule::new().in_links(true, LINK_PREFIX);
    let mut batch = Batch::new();
    batch.own_table(table);
    batch.add_chain(table, Hook::PostroutingNat, [Rule::new().source(true, pool).masquerade()]);
    batch.add_chain(
        table,
        Hook::Forward,
        [
            steps().out_links(true, LINK_PREFIX).drop(),
            steps().source(false, pool).drop(),
            Rule::new().out_links(true, LINK_PREFIX).unasked().drop(),
        ],
    );
    batch
}
