//! What networks need of the host.

use super::error::{NetworkError, Trying};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Lets the host pass packets on between its links. It stays so: others may have come to rely on it.
pub(super) fn forward_packets() -> Result<(), NetworkError> {
    let on = std::fs::read(FORWARD).trying(|| format!("read `{FORWARD}`"))?;
    if on.first() == Some(&b'1') {
        return Ok(());
    }
    std::fs::write(FORWARD, "1").trying(|| format!("turn forwarding on in `{FORWARD}`"))
}

/// Sets an option of a link in the network namespace of the calling thread.
pub(super) fn set_link_option(link: &str, option: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/{option}");
    std::fs::write(&path, value).trying(|| format!("write `{path}`"))
}
