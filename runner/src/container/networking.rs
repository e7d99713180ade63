//! A container's network, from the monitor's side.

use super::error::{At, ContainerError};
use crate::network::{Attachment, ContainerNetwork, Endpoint, NetworkError, Networks, PreparedNetwork};
use crate::spec::{Network, Spec};
use std::fs;
use std::path::Path;

/// Address that stands for the host in `--add-host`.
const HOST_GATEWAY: &str = "host-gateway";

/// Makes the network that a container is to have, and writes what its files say of it. The working directory is the
/// container's.
pub(super) fn attach(
    root: &Path,
    wanted: &ContainerNetwork,
    prepared: Option<PreparedNetwork>,
    spec: &mut Spec,
) -> Result<Attachment, String> {
    let described = |error: NetworkError| match error {
        NetworkError::PortTaken { .. } => format!(
            "driver failed programming external connectivity on endpoint {} ({}): {error}",
            wanted.name, wanted.id
        ),
        _ => format!("failed to set up container networking: {}", error.story()),
    };
    let networks = Networks::open(root, super::clock::stamp).map_err(described)?;
    let attachment = prepared
        .map_or_else(PreparedNetwork::new, Ok)
        .and_then(|prepared| networks.attach_prepared(wanted, prepared))
        .map_err(described)?;
    spec.network = Network::Namespace(attachment.namespace().inherited_path());
    let resolv_conf = networks.resolv_conf(attachment.endpoints(), &wanted.resolvers).map_err(described)?;
    write_files(attachment.endpoints(), &spec.hostname, &resolv_conf).map_err(|error| error.to_string())?;
    Ok(attachment)
}

/// Adds the container's addresses to `hosts`, and writes `resolv.conf`. In place: both may be mounted.
fn write_files(endpoints: &[Endpoint], hostname: &str, resolv_conf: &[u8]) -> Result<(), ContainerError> {
    let hosts = Path::new("hosts");
    let mut text = fs::read_to_string(hosts).at("read", hosts)?;
    let gateway = endpoints.iter().find_map(|endpoint| endpoint.gateway);
    // Where no network leads to the host there is no address for it.
    let known = |line: &&str| gateway.is_some() || line.split('\t').next() != Some(HOST_GATEWAY);
    let gateway = gateway.map(|address| address.to_string()).unwrap_or_default();
    let line = |line: &str| match line.strip_prefix(HOST_GATEWAY) {
        Some(rest) => format!("{gateway}{rest}\n"),
        None => format!("{line}\n"),
    };
    text = text.lines().filter(known).map(line).collect();
    for endpoint in endpoints {
        text.push_str(&format!("{}\t{hostname}\n", endpoint.address));
    }
    fs::write(hosts, text).at("write", hosts)?;
    let path = Path::new("resolv.conf");
    fs::write(path, resolv_conf).at("write", path)
}
