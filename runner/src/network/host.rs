//! What networks need of the host.

use super::error::{NetworkError, Trying};
use super::nftables::Filters;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Lets the host pass packets on between its links. It stays so: others may have come to rely on it.
pub(super) fn forward_packets() -> Result<(), NetworkError> {
    let on = std::fs::read(FORWARD).trying(|| format!("read `{FORWARD}`"))?;
    if on.first() == Some(&b'1') {
        return Ok(());
    }
    std::fs::write(FORWARD, "1").trying(|| format!("turn forwarding on in `{FORWARD}`"))
}

/// Fails where the host's own firewall would drop all that is passed on.
pub(super) fn check_firewall(filters: &mut Filters) -> Result<(), NetworkError> {
    let barriers = filters.barriers().trying(|| "list chains of nf_tables".to_owned())?;
    match barriers.into_iter().next() {
        Some(barrier) => Err(NetworkError::Firewall { table: barrier.table, chain: barrier.chain }),
        None => Ok(()),
    }
}

/// Sets an option of a link in the network namespace of the calling thread.
pub(super) fn set_link_option(link: &str, option: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/{option}");
    std::fs::write(&path, value).trying(|| format!("write `{path}`"))
}
