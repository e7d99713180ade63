//! What a container asks of networks, in the runner's words.

use crate::EngineError;
use std::net::Ipv4Addr;
use xbuild_runner::container::config::{self, Container, HostConfig};
use xbuild_runner::network::{ContainerNetwork, EndpointRequest, PortRequest, Protocol, Resolvers};

/// The network that is to be made for a container; none if it has another's, the host's or none.
pub fn wanted(container: &Container) -> Result<Option<ContainerNetwork>, EngineError> {
    let host = &container.host_config;
    if matches!(host.network_mode.as_str(), "host" | "none") || host.network_mode.starts_with("container:") {
        return Ok(None);
    }
    let endpoints = container.networks.iter().map(|(name, endpoint)| request(container, name, endpoint));
    Ok(Some(ContainerNetwork {
        id: container.id.clone(),
        name: container.name.clone(),
        endpoints: endpoints.collect::<Result<_, _>>()?,
        ports: ports(container)?,
        resolvers: resolvers(container),
    }))
}

/// Name servers of a container: the host's, or those that were asked for.
pub fn resolvers(container: &Container) -> Resolvers {
    Resolvers::parse(resolv_conf(&container.host_config).as_bytes())
}

/// A place of a container in a network, as it was asked for. There it answers to its host name, too.
pub fn request(
    container: &Container,
    network: &str,
    endpoint: &config::Endpoint,
) -> Result<EndpointRequest, EngineError> {
    if !endpoint.ipv6_address.is_empty() {
        return Err(EngineError::Source("--ip6: networks have no IPv6 addresses".to_owned()));
    }
    let address = match endpoint.ipv4_address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| EngineError::Source(format!("invalid IPv4 address: {text}")))?),
    };
    let mac = match endpoint.mac_address.as_str() {
        "" => None,
        text => Some(mac(text).ok_or_else(|| EngineError::Source(format!("invalid mac address: {text}")))?),
    };
    let host_name = Some(&container.config.hostname).filter(|name| !name.is_empty());
    let aliases = endpoint.aliases.iter().chain(host_name).cloned().collect();
    Ok(EndpointRequest { network: network.to_owned(), aliases, address, mac })
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    <[u8; 6]>::try_from(bytes).ok().filter(|bytes| bytes[0] & 1 == 0)
}

/// Ports to publish: those that were named, and with `-P` all that the image exposes.
fn ports(container: &Container) -> Result<Vec<PortRequest>, EngineError> {
    let host = &container.host_config;
    let mut ports = Vec::new();
    for (port, bindings) in &host.port_bindings {
        for binding in bindings {
            ports.push(port_request(port, &binding.host_ip, &binding.host_port)?);
        }
    }
    if host.publish_all_ports {
        let all = container.config.exposed_ports.keys();
        for port in all.filter(|port| !host.port_bindings.contains_key(*port)) {
            ports.push(port_request(port, "", "")?);
        }
    }
    Ok(ports)
}

fn port_request(port: &str, address: &str, host_ports: &str) -> Result<PortRequest, EngineError> {
    let wrong = || EngineError::Source(format!("invalid port `{port}` or `{host_ports}`"));
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            return Err(EngineError::Source(format!("port {port}: {other} cannot be published, only tcp and udp")));
        }
    };
    let host_address = match address {
        "" => Ipv4Addr::UNSPECIFIED,
        text => text
            .parse()
            .map_err(|_| EngineError::Source(format!("{text}: ports can only be published at IPv4 addresses")))?,
    };
    let host_ports = match host_ports.split_once('-') {
        None if host_ports.is_empty() => (0, 0),
        None => host_ports.parse().map(|one| (one, one)).map_err(|_| wrong())?,
        Some((first, last)) => (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?),
    };
    Ok(PortRequest { host_address, host_ports, container_port: number.parse().map_err(|_| wrong())?, protocol })
}

/// `/etc/resolv.conf` of the host, with what was asked for instead.
pub(super) fn resolv_conf(host: &HostConfig) -> String {
    let base = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty() {
        return base;
    }
    let of = |keyword: &'static str| {
        base.lines().filter(move |line| line.split_whitespace().next() == Some(keyword)).map(str::to_owned)
    };
    let mut lines: Vec<String> = match host.dns.is_empty() {
        true => of("nameserver").collect(),
        false => host.dns.iter().map(|server| format!("nameserver {server}")).collect(),
    };
    match host.dns_search.iter().any(|domain| domain != ".") {
        true => lines.push(format!("search {}", host.dns_search.join(" "))),
        false if host.dns_search.is_empty() => lines.extend(of("search")),
        false => {}
    }
    match host.dns_options.is_empty() {
        true => lines.extend(of("options")),
        false => lines.push(format!("options {}", host.dns_options.join(" "))),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_options_replace_their_kind_only() {
        let host = HostConfig {
            dns: vec!["192.0.2.53".to_owned()],
            dns_search: vec!["a.example".to_owned(), "b.example".to_owned()],
            dns_options: vec!["ndots:3".to_owned()],
            ..HostConfig::default()
        };
        assert_eq!(resolv_conf(&host), "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:3\n");
    }

    #[test]
    fn ports_and_hardware_addresses_are_read() {
        let request = port_request("80/udp", "127.0.0.1", "8000-8010").unwrap();
        assert_eq!((request.host_ports, request.container_port), ((8000, 8010), 80));
        assert_eq!(port_request("80/tcp", "", "").unwrap().host_ports, (0, 0));
        assert!(port_request("80/sctp", "", "").is_err() && port_request("80/tcp", "::1", "").is_err());
        assert_eq!(mac("02:42:ac:11:00:ff"), Some([2, 0x42, 0xac, 0x11, 0, 0xff]));
        for wrong in ["", "02:42", "02:42:ac:11:00:zz", "01:00:00:00:00:00"] {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
    }
}
