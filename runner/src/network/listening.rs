//! Whether a container's programs listen where its published ports lead to.

use super::nftables::Protocol;
use super::ports::PortBinding;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until the network of the process `pid` has a listener for every published TCP port, or the time is over, or the
/// process.
pub fn await_listeners(pid: u32, ports: &[PortBinding], patience: Duration) {
    let wanted = ports.iter().filter(|binding| binding.protocol == Protocol::Tcp);
    let wanted: BTreeSet<u16> = wanted.map(|binding| binding.container_port).collect();
    let deadline = Instant::now() + patience;
    while !wanted.is_empty() && Instant::now() < deadline {
        match listeners(pid) {
            Some(found) if !wanted.is_subset(&found) => std::thread::sleep(PAUSE),
            _ => return,
        }
    }
}

/// TCP ports that somebody listens on, in the network of a process; none if it has ended.
fn listeners(pid: u32) -> Option<BTreeSet<u16>> {
    let old = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    // A kernel may do without.
    let new = std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default();
    Some(old.lines().chain(new.lines()).filter_map(listener).collect())
}

/// The port of a line of proc_net_tcp(5) that is about a listener.
fn listener(line: &str) -> Option<u16> {
    const LISTENS: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let port = local.rsplit(':').next().filter(|_| state == LISTENS)?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when"), None);
        assert_eq!(listener("   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000"), Some(8080));
        assert_eq!(listener("   1: 0100007F:1F90 0100007F:D2A4 01 00000000:00000000 00:00000000"), None);
        assert_eq!(listener("   0: 00000000000000000000000000000000:0050 0000:0000 0A"), Some(80));
    }

    #[test]
    fn a_listener_of_ours_is_found_and_no_process_is_not_waited_for() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = open.local_addr().unwrap().port();
        assert!(listeners(std::process::id()).unwrap().contains(&port));
        assert!(listeners(u32::MAX).is_none());
    }
}
