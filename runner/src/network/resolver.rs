//! The host's name servers, and what `/etc/resolv.conf` says in a network of its own.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the name server inside listens.
pub(super) const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
/// As many as the C library takes.
const MOST: usize = 3;

/// What can be used of a host's `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolvers {
    /// Name servers, in order.
    servers: Vec<IpAddr>,
    /// All other lines.
    rest: Vec<String>,
}

impl Resolvers {
    /// Reads the text of a `resolv.conf`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut found = Self { servers: Vec::new(), rest: Vec::new() };
        for line in String::from_utf8_lossy(text).lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (None, _) => {}
                (Some(first), _) if first.starts_with(['#', ';']) => {}
                // A scope (`fe80::1%eth0`) means nothing elsewhere; such servers are left out.
                (Some("nameserver"), Some(address)) => found.servers.extend(address.parse::<IpAddr>().ok()),
                _ => found.rest.push(line.trim().to_owned()),
            }
        }
        found.servers.truncate(MOST);
        if found.servers.is_empty() {
            // What the C library does without a line.
            found.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        found
    }

    /// Settings that were given instead of the host's.
    #[must_use]
    pub fn given(servers: Vec<IpAddr>, search: &[String], options: &[String]) -> Self {
        let line = |word: &str, values: &[String]| (!values.is_empty()).then(|| format!("{word} {}", values.join(" ")));
        Self { servers, rest: line("search", search).into_iter().chain(line("options", options)).collect() }
    }

    /// Whether a name server has to listen inside, because the host's cannot be reached from there: one is on loopback, or
    /// none has an address of IPv4.
    #[must_use]
    pub fn need_forwarding(&self) -> bool {
        self.servers.iter().any(is_local) || !self.servers.iter().any(IpAddr::is_ipv4)
    }

    /// The text for a network of its own.
    #[must_use]
    pub fn inside(&self) -> Vec<u8> {
        let reachable = self.servers.iter().filter(|server| server.is_ipv4());
        let servers: Vec<IpAddr> =
            if self.need_forwarding() { vec![INSIDE.into()] } else { reachable.copied().collect() };
        self.text(&servers)
    }

    /// The text for a network in which the server inside answers, too, for names of its own.
    #[must_use]
    pub fn forwarded(&self) -> Vec<u8> {
        let mut text = self.text(&[INSIDE.into()]);
        // Names of containers have no dots, and are not to be looked for in the host's domains first.
        if !self.rest.iter().any(|line| line.contains("ndots:")) {
            text.extend_from_slice(b"options ndots:0\n");
        }
        text
    }

    /// Where the server inside asks.
    #[must_use]
    pub fn upstream(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| SocketAddr::new(*server, PORT)).collect()
    }

    fn text(&self, servers: &[IpAddr]) -> Vec<u8> {
        let servers = servers.iter().map(|server| format!("nameserver {server}\n"));
        let rest = self.rest.iter().map(|line| format!("{line}\n"));
        servers.chain(rest).collect::<String>().into_bytes()
    }
}

fn is_local(server: &IpAddr) -> bool {
    server.is_loopback() || server.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(text: &str) -> (bool, String) {
        let resolvers = Resolvers::parse(text.as_bytes());
        (resolvers.need_forwarding(), String::from_utf8(resolvers.inside()).unwrap())
    }

    #[test]
    fn servers_that_can_be_reached_stay_as_they_are() {
        let text = "# note\nsearch a b\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:2\n";
        assert_eq!(inside(text), (false, "nameserver 192.0.2.1\nsearch a b\noptions ndots:2\n".to_owned()));
    }

    #[test]
    fn servers_on_loopback_are_asked_through_one_inside() {
        let forwarded = |text| inside(text).0;
        for text in ["nameserver 127.0.0.53", "nameserver 192.0.2.1\nnameserver ::1", "", "nameserver 2001:db8::1"] {
            assert!(forwarded(text), "{text}");
            assert_eq!(inside(text).1, "nameserver 127.0.0.11\n");
        }
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let resolvers =
            Resolvers::parse(b"nameserver\nnameserver x\nnameserver fe80::1%eth0\nnameserver 192.0.2.7 trailing\n\xff");
        assert_eq!(resolvers.upstream(), ["192.0.2.7:53".parse().unwrap()]);
    }
}
