//! Networks of sandboxes.
//!
//! [`StepNetworks`] makes the networks of RUN steps. [`Networks`] are those of containers, with an [`Attachment`] for each
//! container that runs. Links, addresses and routes are made over netlink (`links`), NAT and filters by nf_tables without
//! its program (`nftables`). Work in another network namespace is done by threads that were made for it; no other
//! thread of the process ever changes its namespace.
//!
//! Root of a user namespace may not touch the host's network: there each namespace has a way out of its own (`usermode`).
//!
//! Everything is owned by a process, and goes with it: namespaces and links with descriptors, published ports with
//! sockets, addresses and names with a lock. Only bridges, with a table each, outlive a killed process, until the next
//! change.

mod address;
mod bridge;
mod containers;
mod dns;
mod error;
mod firewall;
mod host;
mod links;
mod listening;
mod names;
mod namespace;
mod netlink;
mod networks;
mod nftables;
mod ports;
mod records;
mod resolver;
mod steps;
mod usermode;

pub use address::Net4;
pub use containers::{Attachment, ContainerNetwork, EndpointRequest, PreparedNetwork};
pub use dns::{Server as DnsServer, Service as DnsService, Sockets as DnsSockets};
pub use error::NetworkError;
pub use listening::await_listeners;
pub use namespace::Namespace;
pub use namespace::is_ours as may_change_networks;
pub use networks::{Networks, NewNetwork};
pub use nftables::Protocol;
pub use ports::{PortBinding, PortRequest};
pub use records::{Addresses, Driver, Endpoint, MTU_OPTION, NetworkRecord};
pub use resolver::Resolvers;
pub use steps::{Request, StepNetwork, StepNetworks};
pub use usermode::check as check_outlet;

/// A number that other processes hardly have.
fn random_number() -> u32 {
    u32::from_ne_bytes(random())
}

/// 64 hexadecimal digits that nothing else has.
fn random_id() -> String {
    random::<32>().map(|byte| format!("{byte:02x}")).concat()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Only a kernel that has just started can fail, and then in filling it all at once.
    let mut done = 0;
    while done < N {
        done += rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()).unwrap_or_default();
    }
    bytes
}
