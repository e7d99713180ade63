//! What can go wrong with networks.

use std::io;

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused something.
    #[error("cannot {action}")]
    Refused {
        /// What was tried, and on what.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The program that connects namespaces of a user does not do it.
    #[error("no way out for a user's network: {0}")]
    Outlet(String),
    /// Only root makes networks.
    #[error(
        "a container cannot be in the network {0} without root; in `bridge` it reaches the outside, not other containers"
    )]
    Rootless(String),
    /// The host's firewall is in the way.
    #[error("the host's firewall drops what passes through (chain `{chain}` of table `{table}`)")]
    Firewall {
        /// Table of nf_tables.
        table: String,
        /// Its chain.
        chain: String,
    },
    /// No network has this name.
    #[error("network {0} not found")]
    NotFound(String),
    /// Several networks' IDs begin so.
    #[error("network {0} is ambiguous: several IDs begin so")]
    Ambiguous(String),
    /// The name is taken.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// Running containers use it.
    #[error("error while removing network: network {name} id {id} has active endpoints")]
    InUse {
        /// The network's name.
        name: String,
        /// Its ID.
        id: String,
    },
    /// One of those that are always there.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// What is asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Another network or a route of the host has these addresses.
    #[error("the subnet {0} overlaps with one that is already in use")]
    Overlap(super::Net4),
    /// Another container has the address.
    #[error("the address {0} is already in use")]
    AddressTaken(std::net::Ipv4Addr),
    /// Somebody else has the port.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken {
        /// Address of the host.
        address: std::net::Ipv4Addr,
        /// Its port.
        port: u16,
    },
    /// The container has a network already.
    #[error("container {0} is already attached to its networks")]
    Attached(String),
    /// The container is in that network already.
    #[error("endpoint with name {container} already exists in network {network}")]
    Connected {
        /// The container's name.
        container: String,
        /// The network's name.
        network: String,
    },
    /// The container is not in that network.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container's name.
        container: String,
        /// The network's name.
        network: String,
    },
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// Every network or address that could be used is taken.
    #[error("no free {0}")]
    Exhausted(&'static str),
}

impl NetworkError {
    /// The whole story in one line.
    #[must_use]
    pub fn story(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// Names the action that an error belongs to.
pub(super) trait Trying<T> {
    /// Wraps the error with what was tried.
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T, E: Into<io::Error>> Trying<T> for Result<T, E> {
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|error| NetworkError::Refused { action: action(), source: error.into() })
    }
}
