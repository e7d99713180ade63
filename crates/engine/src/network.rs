//! Networks of RUN steps and of `run`, and what `/etc` says about them inside.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use xbuild_graph::NetworkMode;
use xbuild_runner::Network;
use xbuild_runner::network::{DnsServer, DnsService, Request, Resolvers, StepNetwork, StepNetworks};

/// Address that stands for the host in `--add-host`.
const HOST_GATEWAY: &str = "host-gateway";

/// Gives processes their networks. Opens and makes nothing before the first wants one of its own.
#[derive(Debug)]
pub(crate) struct Networks {
    /// The host's `/etc/resolv.conf`.
    resolv_conf: Vec<u8>,
    resolvers: Resolvers,
    steps: StepNetworks,
    /// Why processes have the host's network instead; taken by who says it.
    shortfall: Mutex<Shortfall>,
}

#[derive(Debug, Default)]
enum Shortfall {
    #[default]
    None,
    Found(String),
    Told,
}

/// A network that was asked for.
#[derive(Debug)]
pub(crate) enum Wanted {
    Host,
    None,
    Own(Request),
}

/// The network of one process; has to live as long as that.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Where it is.
    pub(crate) network: Network,
    /// Content of `/etc/resolv.conf`.
    pub(crate) resolv_conf: Vec<u8>,
    /// The host, seen from there.
    gateway: IpAddr,
    _held: Option<(Option<DnsServer>, StepNetwork)>,
}

impl Networks {
    /// With the host's settings; a host without a resolver has none to give. At most `expected` processes will want a
    /// network of their own.
    pub(crate) fn of_host(expected: usize) -> Self {
        let resolv_conf = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        let resolvers = Resolvers::parse(&resolv_conf);
        let steps = StepNetworks::new(resolvers.need_forwarding());
        steps.expect(expected);
        Self { resolv_conf, resolvers, steps, shortfall: Mutex::default() }
    }

    /// Asks for a network, which is then made while the caller does something else.
    pub(crate) fn want(&self, mode: NetworkMode) -> Wanted {
        match mode {
            NetworkMode::Default => Wanted::Own(self.steps.request()),
            NetworkMode::Host => Wanted::Host,
            NetworkMode::None => Wanted::None,
        }
    }

    /// Waits for a network. One of its own that cannot be had is the host's.
    pub(crate) fn attach(&self, wanted: Wanted) -> Attached {
        let request = match wanted {
            Wanted::Own(request) => request,
            Wanted::Host => return self.shared(Network::Host),
            Wanted::None => return self.shared(Network::None),
        };
        let mut step = match request.wait() {
            Ok(step) => step,
            Err(error) => return self.fall_back(error.story()),
        };
        let (network, gateway) = (Network::Namespace(step.namespace().path()), step.gateway().into());
        let server =
            step.take_dns().map(|sockets| DnsServer::start(DnsService::new(sockets, self.resolvers.upstream())));
        match server.transpose() {
            Ok(server) => {
                Attached { network, resolv_conf: self.resolvers.inside(), gateway, _held: Some((server, step)) }
            }
            Err(error) => self.fall_back(format!("cannot start a name server: {error}")),
        }
    }

    /// Why a process got the host's network instead of one of its own; once.
    pub(crate) fn shortfall(&self) -> Option<String> {
        let mut shortfall = self.shortfall.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *shortfall) {
            Shortfall::None => None,
            Shortfall::Told => {
                *shortfall = Shortfall::Told;
                None
            }
            Shortfall::Found(why) => {
                *shortfall = Shortfall::Told;
                Some(format!("no network of its own, the host's is used: {why}"))
            }
        }
    }

    fn fall_back(&self, why: String) -> Attached {
        let mut shortfall = self.shortfall.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*shortfall, Shortfall::None) {
            *shortfall = Shortfall::Found(why);
        }
        self.shared(Network::Host)
    }

    fn shared(&self, network: Network) -> Attached {
        let gateway = Ipv4Addr::LOCALHOST.into();
        Attached { network, resolv_conf: self.resolv_conf.clone(), gateway, _held: None }
    }
}

impl Attached {
    /// `/etc/hosts` with the extra lines.
    pub(crate) fn hosts_file(&self, hostname: &str, extra: &[(String, String)]) -> Vec<u8> {
        let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for (name, address) in extra {
            match address.as_str() {
                HOST_GATEWAY => text.push_str(&format!("{}\t{name}\n", self.gateway)),
                address => text.push_str(&format!("{address}\t{name}\n")),
            }
        }
        text.into_bytes()
    }
}
