//! `network …`, and what other commands show of networks.

use super::each;
use super::list::{has_label, keyed};
use super::prune::{Chosen, PruneArgs, confirmed, prune_networks};
use super::values::pair;
use super::volume::seconds;
use crate::cli::format::{self, LABELS, Shape};
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use xbuild_engine::container::networks as asked;
use xbuild_runner::container::config::{Container, Endpoint as Asked};
use xbuild_runner::container::{ContainerError, Containers, Found, clock};
use xbuild_runner::network::{
    Endpoint, MTU_OPTION, NetworkError, NetworkRecord, Networks, NewNetwork, PortBinding, Protocol, await_listeners,
};

/// Commands on networks.
#[derive(Subcommand, Debug)]
pub(crate) enum NetworkCommand {
    /// Put a container into a network
    Connect(ConnectArgs),
    /// Make a network
    Create(CreateArgs),
    /// Take a container out of a network
    Disconnect(DisconnectArgs),
    /// Show details of networks
    Inspect(super::InspectFlags),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Remove networks that no container uses
    Prune(PruneArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

/// Flags of `network create`.
#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    /// Driver: `bridge`
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Addresses of the network, as `10.1.0.0/16`
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// Address of the host in the network
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<String>,
    /// Where addresses of containers are taken from
    #[arg(long, value_name = "CIDR")]
    ip_range: Option<String>,
    /// Without a way out
    #[arg(long)]
    internal: bool,
    /// Taken for docker's sake: every container can be put into every network
    #[arg(long)]
    attachable: bool,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Option of the driver; kept with the network, docker's own are refused
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Name
    name: String,
}

/// Flags of `network connect`.
#[derive(clap::Args, Debug)]
pub(crate) struct ConnectArgs {
    /// Further name of the container there
    #[arg(long)]
    alias: Vec<String>,
    /// Address of the container there
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// Network
    network: String,
    /// Container
    container: String,
}

/// Flags of `network disconnect`.
#[derive(clap::Args, Debug)]
pub(crate) struct DisconnectArgs {
    /// Also a container that is not there any more
    #[arg(short, long)]
    force: bool,
    /// Network
    network: String,
    /// Container
    container: String,
}

/// Flags of `network ls`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// Only what fits (`name=x`, `id=x`, `label=k=v`, `driver=bridge`, `type=custom|builtin`, `scope=local`, `dangling=true`)
    #[arg(short, long)]
    filter: Vec<String>,
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `network rm`.
#[derive(clap::Args, Debug)]
pub(crate) struct RemoveArgs {
    /// No error for networks that are not there
    #[arg(short, long)]
    force: bool,
    /// Names or IDs
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) fn network(command: &NetworkCommand, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let networks = Networks::open(containers.store(), clock::stamp)?;
    match command {
        NetworkCommand::Connect(args) => connect(args, &containers, &networks),
        NetworkCommand::Create(args) => create(args, &containers, &networks),
        NetworkCommand::Disconnect(args) => disconnect(args, &containers, &networks),
        NetworkCommand::Inspect(args) => args.show(|name| shown(&networks, &networks.find(name)?)),
        NetworkCommand::Ls(args) => list(args, &containers, &networks),
        NetworkCommand::Prune(args) => prune(args, global),
        NetworkCommand::Rm(args) => each(&args.names, |name| {
            if args.force && matches!(networks.find(name), Err(NetworkError::NotFound(_))) {
                return Ok(None);
            }
            let removed = networks.remove(name)?;
            event(&containers, "destroy", &removed, None);
            Ok(Some(name.to_owned()))
        }),
    }
}

fn create(args: &CreateArgs, containers: &Containers, networks: &Networks) -> Result<Outcome> {
    if args.driver != "bridge" {
        bail!("plugin \"{}\" not found: the only network driver is `bridge`", args.driver);
    }
    if matches!(args.name.as_str(), "bridge" | "host" | "none") {
        bail!("operation is not permitted on predefined {} network", args.name);
    }
    let options: BTreeMap<String, String> = args.options.iter().map(|option| pair(option)).collect();
    let known = |key: &String| key == MTU_OPTION || !key.starts_with("com.docker.network.");
    if let Some(unknown) = options.keys().find(|key| !known(key)) {
        bail!("the network option `{unknown}` is not supported");
    }
    if let Some(mtu) = options.get(MTU_OPTION)
        && !mtu.parse::<u32>().is_ok_and(|mtu| (68..=65_535).contains(&mtu))
    {
        bail!("invalid value for {MTU_OPTION}: {mtu}");
    }
    let net = |text: &String| text.parse().map_err(|why| anyhow!("invalid subnet {text}: {why}"));
    let address = |text: &String| text.parse().with_context(|| format!("invalid address: {text}"));
    let new = NewNetwork {
        name: args.name.clone(),
        subnet: args.subnet.as_ref().map(net).transpose()?,
        gateway: args.gateway.as_ref().map(address).transpose()?,
        range: args.ip_range.as_ref().map(net).transpose()?,
        internal: args.internal,
        labels: args.label.iter().map(|label| pair(label)).collect(),
        options,
    };
    let made = networks.create(new)?;
    event(containers, "create", &made, None);
    super::lifecycle::say(&made.id)?;
    Ok(Outcome::Success)
}

fn connect(args: &ConnectArgs, containers: &Containers, networks: &Networks) -> Result<Outcome> {
    let network = networks.find(&args.network)?;
    let found = containers.find(&args.container)?;
    let container = &found.container;
    let mode = container.host_config.network_mode.as_str();
    if mode == "host" || mode.starts_with("container:") {
        bail!(
            "container sharing network namespace with another container or host cannot be connected to any other network"
        );
    }
    if mode == "none" || network.name == "none" {
        bail!("container cannot be connected to multiple networks with one of the networks in private (none) mode");
    }
    if network.name == "host" {
        bail!("container cannot be disconnected from host network or connected to host network");
    }
    if container.networks.contains_key(&network.name) {
        bail!("endpoint with name {} already exists in network {}", container.name, network.name);
    }
    let asked =
        Asked { aliases: args.alias.clone(), ipv4_address: args.ip.clone().unwrap_or_default(), ..Asked::default() };
    let request = asked::request(container, &network.name, &asked)?;
    if found.state.status.is_alive() {
        let path = format!("/proc/{}/ns/net", found.state.pid);
        let namespace = std::fs::File::open(&path).with_context(|| format!("cannot open `{path}`"))?;
        networks.connect((&container.id, &container.name), namespace.into(), &request)?;
        rewrite_resolv_conf(&found, networks)?;
    }
    containers.update(&container.id, &mut |container| {
        container.networks.insert(network.name.clone(), asked.clone());
        Ok(())
    })?;
    super::lifecycle::reload(containers, &found)?;
    event(containers, "connect", &network, Some(&container.id));
    Ok(Outcome::Success)
}

fn disconnect(args: &DisconnectArgs, containers: &Containers, networks: &Networks) -> Result<Outcome> {
    let network = networks.find(&args.network)?;
    let found = match containers.find(&args.container) {
        Err(ContainerError::Missing(_)) if args.force => return Ok(Outcome::Success),
        answer => answer?,
    };
    let container = &found.container;
    if !container.networks.contains_key(&network.name) {
        bail!("container {} is not connected to network {}", container.id, network.name);
    }
    if found.state.status.is_alive() {
        networks.disconnect((&container.id, &container.name), &network.id)?;
        rewrite_resolv_conf(&found, networks)?;
    }
    containers.update(&container.id, &mut |container| {
        container.networks.remove(&network.name);
        Ok(())
    })?;
    super::lifecycle::reload(containers, &found)?;
    event(containers, "disconnect", &network, Some(&container.id));
    Ok(Outcome::Success)
}

/// Whether names of containers can be asked for depends on the networks. In place: the file is mounted.
fn rewrite_resolv_conf(found: &Found, networks: &Networks) -> Result<()> {
    let text =
        networks.resolv_conf(&networks.endpoints_of(&found.container.id)?, &asked::resolvers(&found.container))?;
    let path = found.directory.join("resolv.conf");
    std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

pub(super) fn event(containers: &Containers, action: &str, network: &NetworkRecord, container: Option<&str>) {
    let mut attributes = BTreeMap::from([
        ("name".to_owned(), network.name.clone()),
        ("type".to_owned(), network.driver.name().to_owned()),
    ]);
    attributes.extend(container.map(|id| ("container".to_owned(), id.to_owned())));
    containers.events().add("network", action, &network.id, attributes);
}

/// A network as docker shows it.
pub(crate) fn shown(networks: &Networks, network: &NetworkRecord) -> Result<Value> {
    let config = network.addresses.as_ref().map(|addresses| {
        let mut config = json!({"Subnet": addresses.subnet.to_string(), "Gateway": addresses.gateway.to_string()});
        if let Some(range) = addresses.range {
            config["IPRange"] = range.to_string().into();
        }
        vec![config]
    });
    let one = |endpoint: &Endpoint| {
        let about = json!({
            "Name": endpoint.container_name,
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac_text(),
            "IPv4Address": format!("{}/{}", endpoint.address, endpoint.prefix),
            "IPv6Address": "",
        });
        (endpoint.container.clone(), about)
    };
    let containers: Map<String, Value> = networks.endpoints(network)?.iter().map(one).collect();
    Ok(json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": network.driver.name(),
        "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": {}, "Config": config},
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": containers,
        "Options": network.options,
        "Labels": network.labels,
    }))
}

const HEADERS: [(&str, &str); 8] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

fn list(args: &ListArgs, containers: &Containers, networks: &Networks) -> Result<Outcome> {
    let filters = keyed(&args.filter, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let mut rows = Vec::new();
    for network in networks.list()? {
        let used = is_used(containers, &network)?;
        let fits = filters.iter().all(|(key, values)| match key.as_str() {
            "label" => values.iter().all(|value| has_label(&network.labels, value)),
            "name" => values.iter().any(|value| super::pattern::found(value, &network.name)),
            "id" => values.iter().any(|value| network.id.starts_with(value.as_str())),
            "driver" => values.iter().any(|value| value == network.driver.name()),
            "scope" => values.iter().any(|value| value == "local"),
            "type" => values.iter().any(|value| (value == "builtin") == network.is_predefined()),
            _ => values.iter().any(|value| matches!(value.as_str(), "true" | "1") != (used || network.is_predefined())),
        });
        if fits {
            let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            rows.push(json!({
                "ID": if args.no_trunc { network.id.as_str() } else { &network.id[..12] },
                "Name": network.name,
                "Driver": network.driver.name(),
                "Scope": "local",
                "IPv6": "false",
                "Internal": network.internal.to_string(),
                "Labels": labels.join(","),
                "CreatedAt": super::at(seconds(&network.created)),
                LABELS: network.labels,
            }));
        }
    }
    let default = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
    let shape = Shape { headers: &HEADERS, default, quiet: "{{.ID}}" };
    format::print(&mut std::io::stdout().lock(), &shape, args.format.as_deref(), args.quiet, &rows)?;
    Ok(Outcome::Success)
}

/// Whether any container wants it, also one that does not run.
fn is_used(containers: &Containers, network: &NetworkRecord) -> Result<bool> {
    Ok(containers.list()?.iter().any(|found| found.container.networks.contains_key(&network.name)))
}

fn prune(args: &PruneArgs, global: &Global) -> Result<Outcome> {
    if confirmed(args.force, "all custom networks not used by at least one container")? {
        prune_networks(&global.engine()?, &Chosen::parse(&args.filter)?)?;
    }
    Ok(Outcome::Success)
}

/// The networks of the store that a container is in.
fn networks_of(found: &Found) -> Result<Networks> {
    let containers = found.directory.parent().unwrap_or(Path::new("/"));
    Ok(Networks::open(containers.parent().unwrap_or(containers), clock::stamp)?)
}

/// How long a container that has just started may take to answer at its published ports before its start is reported.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);

/// Waits for a moment until programs of a container that has just started listen at its published ports: scripts ask there
/// as soon as they are told that it runs, and with engines that take longer to say so they are answered.
pub(crate) fn await_ports(found: &Found, pid: u32) {
    let ports = networks_of(found).map(|networks| networks.ports_of(&found.container.id));
    await_listeners(pid, &ports.unwrap_or_default(), PATIENCE);
}

/// Published ports of a container that runs.
fn ports(found: &Found) -> Vec<PortBinding> {
    if !found.state.status.is_alive() {
        return Vec::new();
    }
    // One whose networks cannot be read has none to show.
    let mut ports = networks_of(found).map(|networks| networks.ports_of(&found.container.id)).unwrap_or_default();
    ports.sort_by_key(|port| (port.container_port, port.protocol, port.host_address, port.host_port));
    ports
}

fn container_port(port: &PortBinding) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.container_port)
}

/// Published ports of a container that runs: port and address.
pub(crate) fn published(found: &Found) -> Vec<(String, String)> {
    ports(found)
        .iter()
        .map(|port| (container_port(port), format!("{}:{}", port.host_address, port.host_port)))
        .collect()
}

/// Ports as `ps` shows them: published ones, then those that are only exposed.
pub(crate) fn port_list(found: &Found) -> String {
    if !found.state.status.is_alive() {
        return String::new();
    }
    let published = published(found);
    let exposed = found.container.config.exposed_ports.keys();
    let alone = exposed.filter(|port| !published.iter().any(|(own, _)| own == *port)).cloned();
    let led = published.iter().map(|(port, address)| format!("{address}->{port}"));
    led.chain(alone).collect::<Vec<_>>().join(", ")
}

/// `NetworkSettings` of `inspect`.
pub(crate) fn settings(found: &Found) -> Result<Value> {
    let container = &found.container;
    let alive = found.state.status.is_alive();
    let endpoints = if alive { networks_of(found)?.endpoints_of(&container.id)? } else { Vec::new() };
    let mut shown: Map<String, Value> = Map::new();
    for name in super::inspect::network_names(container) {
        let asked = container.networks.get(&name).cloned().unwrap_or_default();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.network_name == name);
        shown.insert(name, place(container, &asked, endpoint));
    }
    let default = endpoints.iter().find(|endpoint| endpoint.network_name == "bridge");
    let mut settings = place(container, &Asked::default(), default);
    let map = settings.as_object_mut().context("an object")?;
    for own in ["IPAMConfig", "Links", "Aliases", "DriverOpts", "NetworkID", "DNSNames"] {
        map.remove(own);
    }
    map.insert("Bridge".to_owned(), "".into());
    map.insert("SandboxID".to_owned(), "".into());
    map.insert(
        "SandboxKey".to_owned(),
        if alive { format!("/proc/{}/ns/net", found.state.pid) } else { String::new() }.into(),
    );
    map.insert("Ports".to_owned(), port_map(found));
    map.insert("Networks".to_owned(), shown.into());
    Ok(settings)
}

/// A container's place in a network: what was asked for, and what it has while it runs.
fn place(container: &Container, asked: &Asked, endpoint: Option<&Endpoint>) -> Value {
    let text = |value: fn(&Endpoint) -> String| endpoint.map(value).unwrap_or_default();
    let config = (!asked.ipv4_address.is_empty()).then(|| json!({"IPv4Address": asked.ipv4_address}));
    let mut names = vec![container.name.clone()];
    names.extend(asked.aliases.iter().cloned());
    names.push(container.short_id().to_owned());
    json!({
        "IPAMConfig": config,
        "Links": null,
        "Aliases": if asked.aliases.is_empty() { Value::Null } else { json!(asked.aliases) },
        "MacAddress": text(Endpoint::mac_text),
        "DriverOpts": null,
        "NetworkID": text(|e| e.network.clone()),
        "EndpointID": text(|e| e.id.clone()),
        "Gateway": text(|e| e.gateway.map(|gateway| gateway.to_string()).unwrap_or_default()),
        "IPAddress": text(|e| e.address.to_string()),
        "IPPrefixLen": endpoint.map_or(0, |e| e.prefix),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": names,
    })
}

/// Ports of a container that runs, with the addresses that they are published at.
fn port_map(found: &Found) -> Value {
    let mut map: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    if found.state.status.is_alive() {
        for port in found.container.config.exposed_ports.keys() {
            map.entry(port.clone()).or_default();
        }
    }
    for port in ports(found) {
        let address = json!({"HostIp": port.host_address.to_string(), "HostPort": port.host_port.to_string()});
        map.entry(container_port(&port)).or_default().push(address);
    }
    map.into_iter()
        .map(|(port, all)| (port, if all.is_empty() { Value::Null } else { all.into() }))
        .collect::<Map<_, _>>()
        .into()
}
