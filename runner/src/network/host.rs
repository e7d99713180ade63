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
