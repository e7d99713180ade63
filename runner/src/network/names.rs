//! Names of containers, for the name server inside a user's network.

use super::dns::Lookup;
use super::dns::question::{Question, Record};
use super::networks::Networks;

use super::records::Endpoint;
use std::net::Ipv4Addr;

/// What a container can look up: the containers that share a network with names with it.
#[derive(Debug)]
pub(super) struct Names {
    networks: Networks,
    container: String,
}

impl Names {
    /// Those that `container` sees, as they are at each question.
    pub(super) fn new(networks: Networks, container: &str) -> Self {
        Self { networks, container: container.to_owned() }
    }

    /// Endpoints in networks with names that the container is in.
    fn neighbours(&self) -> Vec<Endpoint> {
        let Ok(networks) = self.networks.list() else { return Vec::new() };
        let shared = networks.iter().filter(|network| network.has_names());
        // A network that cannot be read has no names to give.
        let endpoints = shared.map(|network| self.networks.endpoints(network).unwrap_or_default());
        endpoints.filter(|all| all.iter().any(|endpoint| endpoint.container == self.container)).flatten().collect()
    }
}

impl Lookup for Names {
    fn lookup(&self, question: &Question) -> Option<Vec<Record>> {
        if let Some(address) = question.reversed() {
            let found = self.neighbours().into_iter().find(|endpoint| endpoint.address == address)?;
            return Some(vec![Record::Name(format!("{}.{}", found.container_name, found.network_name))]);
        }
        let neighbours = self.neighbours();
        let found: Vec<Ipv4Addr> =
            neighbours.iter().filter(|endpoint| is_called(endpoint, &question.name)).map(|e| e.address).collect();
        (!found.is_empty()).then(|| found.into_iter().map(Record::Address).collect())
    }
}

/// Whether a container answers to a name: its own, its short ID, an alias; each also with the network's name behind it.
fn is_called(endpoint: &Endpoint, name: &str) -> bool {
    let name = match name.strip_suffix(&endpoint.network_name.to_ascii_lowercase()).and_then(|n| n.strip_suffix('.')) {
        Some(short) => short,
        None => name,
    };
    let own = [endpoint.container_name.as_str(), endpoint.container.get(..12).unwrap_or_default()];
    own.into_iter().chain(endpoint.aliases.iter().map(String::as_str)).any(|known| known.eq_ignore_ascii_case(name))
}
