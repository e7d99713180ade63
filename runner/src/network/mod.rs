//! Networks of sandboxes.
//!
//! [`StepNetworks`] makes the networks of RUN steps. Links, addresses and routes are made over netlink ([`links`]), NAT
//! and filters by nf_tables without its program ([`nftables`]). Work in another network namespace is done by threads
//! that were made for it; no other thread of the process ever changes its namespace.

mod address;
mod dns;
mod error;
mod host;
mod links;
mod namespace;
mod netlink;
mod nftables;
mod resolver;
mod steps;

pub use address::Net4;
pub use dns::{Server as DnsServer, Sockets as DnsSockets};
pub use error::NetworkError;
pub use namespace::Namespace;
pub use nftables::Protocol;
pub use resolver::Resolvers;
pub use steps::{Request, StepNetwork, StepNetworks};
