//! A container's network, from the monitor's side.

use super::error::{At, ContainerError};
use crate::network::{Attachment, ContainerNetwork, Endpoint, NetworkError, Networks, PreparedNetwork};
use std::fs;
use std::path::Path;

/// Address that stands for the host in `--add-host`.
const HOST_GATEWAY: &str = "host-gateway";

/// What a container's network starts from.
pub(super) fn prepare(prepared: Option<PreparedNetwork>) -> Result<PreparedNetwork, String> {
    prepared.map_or_else(PreparedNetwork::new, Ok).map_err(|error| described(&error))
}

/// Makes the network that a container is to have, and writes what its files say of it; `own_name` is that of its host and of
/// its domain, which may be empty. The working directory is the container's.
pub(super) fn attach(
    root: &Path,
    wanted: &ContainerNetwork,
    prepared: PreparedNetwork,
    own_name: (&str, &str),
) -> Result<Attachment, String> {
    let networks = Networks::open(root, super::clock::stamp).map_err(|error| described(&error))?;
    let attachment = networks.attach_prepared(wanted, prepared).map_err(|error| match error {
        NetworkError::PortTaken { .. } => format!(
            "driver failed programming external connectivity on endpoint {} ({}): {error}",
            wanted.name, wanted.id
        ),
        error => described(&error),
    })?;
    let resolv_conf = networks.resolv_conf(attachment.endpoints(), &wanted.resolvers);
    let resolv_conf = resolv_conf.map_err(|error| described(&error))?;
    write_files(attachment.endpoints(), own_name, &resolv_conf).map_err(|error| error.to_string())?;
    Ok(attachment)
}

fn described(error: &NetworkError) -> String {
    format!("failed to set up container networking: {}", error.story())
}

/// Adds the container's addresses to `hosts`, and writes `resolv.conf`. In place: both may be mounted.
fn write_files(
    endpoints: &[Endpoint],
    (hostname, domain): (&str, &str),
    resolv_conf: &[u8],
) -> Result<(), ContainerError> {
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
    let whole = if domain.is_empty() { String::new() } else { format!("{hostname}.{domain} ") };
    for endpoint in endpoints {
        text.push_str(&format!("{}\t{whole}{hostname}\n", endpoint.address));
    }
    fs::write(hosts, text).at("write", hosts)?;
    let path = Path::new("resolv.conf");
    fs::write(path, resolv_conf).at("write", path)
}
