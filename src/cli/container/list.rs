//! `ps`.

use super::pattern;
use crate::cli::format::{self, LABELS, Shape, human};
use crate::cli::{Global, Outcome, time};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use xbuild_engine::Engine;
use xbuild_runner::container::config::Container;
use xbuild_runner::container::{Containers, Found, Status, clock};

/// Flags of `ps`.
#[derive(clap::Args, Debug)]
pub(crate) struct PsArgs {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Only what fits (`name=web`, `status=exited`, `label=k=v`…)
    #[arg(short, long)]
    filter: Vec<String>,
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// The newest N, whatever they do
    #[arg(short = 'n', long, allow_hyphen_values = true)]
    last: Option<i64>,
    /// The newest, whatever it does
    #[arg(short, long)]
    latest: bool,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Show sizes
    #[arg(short, long)]
    size: bool,
}

const HEADERS: [(&str, &str); 15] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];

const DEFAULT: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

/// `--format raw`.
const RAW: &str = "container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
";

/// The template that a format is short for.
fn format_of(args: &PsArgs) -> Option<String> {
    match args.format.as_deref() {
        Some("raw") if args.quiet => Some("container_id: {{.ID}}".to_owned()),
        Some("raw") if args.size => Some(format!("{RAW}size: {{{{.Size}}}}\n")),
        Some("raw") => Some(RAW.to_owned()),
        other => other.map(str::to_owned),
    }
}

pub(crate) fn ps(args: &PsArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let containers = engine.containers();
    let filters = Filters::parse(&args.filter)?;
    let last = if args.latest { Some(1) } else { args.last.filter(|count| *count >= 0) };
    let everything = args.all || last.is_some() || filters.names_state();
    let mut found = Vec::new();
    for one in containers.list()? {
        let shown = everything || matches!(one.state.status, Status::Running | Status::Paused | Status::Restarting);
        if shown && filters.fit(&engine, &containers, &one)? {
            found.push(one);
        }
    }
    if let Some(count) = last.and_then(|count| usize::try_from(count).ok()) {
        found.truncate(count);
    }
    let format = format_of(args);
    let with_size = args.size || format.as_deref().is_some_and(|format| format.contains(".Size"));
    let rows = found.iter().map(|one| {
        let size = if with_size { size(&engine, one)? } else { "0B".to_owned() };
        Ok(row(one, args.no_trunc, &size))
    });
    let rows: Vec<Value> = rows.collect::<Result<_>>()?;
    let default = if args.size { format!("{DEFAULT}\t{{{{.Size}}}}") } else { DEFAULT.to_owned() };
    let shape = Shape { headers: &HEADERS, default: &default, quiet: "{{.ID}}" };
    format::print(&mut std::io::stdout().lock(), &shape, format.as_deref(), args.quiet, &rows)?;
    Ok(Outcome::Success)
}

pub(crate) fn row(found: &Found, whole: bool, size: &str) -> Value {
    let container = &found.container;
    let config = &container.config;
    let labels: Vec<String> = config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| {
            let name = if mount.name.is_empty() { &mount.source } else { &mount.name };
            if whole { name.clone() } else { shortened(name, 15) }
        })
        .collect();
    let seconds = clock::parse(&container.created).map_or(0, |(seconds, _)| seconds);
    json!({
        "ID": if whole { container.id.as_str() } else { container.short_id() },
        "Names": container.name,
        "Image": config.image,
        "Command": format!("\"{}\"", command(container, whole).replace('"', "\\\"")),
        "CreatedAt": at(seconds),
        "RunningFor": time::ago(seconds * 1000),
        "Ports": super::network::port_list(found),
        "State": found.state.status.word(),
        "Status": status(found),
        "Size": size,
        "Labels": labels.join(","),
        "LocalVolumes": container.mounts.iter().filter(|mount| mount.kind == "volume").count().to_string(),
        "Mounts": mounts.join(","),
        "Networks": super::inspect::network_names(container).join(","),
        "Platform": container.platform,
        LABELS: config.labels,
    })
}

/// `2026-01-31 12:00:00 +0000 UTC`.
pub(crate) fn at(seconds: i64) -> String {
    let text = clock::format(seconds, 0);
    format!("{} {} +0000 UTC", &text[..10], &text[11..19])
}

fn command(container: &Container, whole: bool) -> String {
    let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let words = container.command();
    let text: Vec<String> =
        words.iter().enumerate().map(|(n, word)| if n == 0 { word.clone() } else { quoted(word) }).collect();
    let text = text.join(" ").replace('\n', "\\n");
    if whole { text } else { shortened(&text, 20) }
}

fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// `Up 5 minutes (healthy)`.
pub(crate) fn status(found: &Found) -> String {
    let state = &found.state;
    let since = |text: &str| {
        let then = clock::parse(text).map_or(0, |(seconds, _)| seconds);
        time::span(u64::try_from(clock::now().0 - then).unwrap_or(0))
    };
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(&state.finished_at)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, since(&state.finished_at)),
        Status::Paused => format!("Up {} (Paused)", since(&state.started_at)),
        Status::Running => match &state.health {
            None => format!("Up {}", since(&state.started_at)),
            Some(health) if health.status == "starting" => {
                format!("Up {} (health: starting)", since(&state.started_at))
            }
            Some(health) => format!("Up {} ({})", since(&state.started_at), health.status),
        },
    }
}

/// What the container has written, and with its image.
pub(crate) fn size(engine: &Engine, found: &Found) -> Result<String> {
    let own = super::changes::disk_size(&found.directory.join("fs"));
    Ok(format!("{} (virtual {})", human(own), human(own + engine.tree_size(found.container.tree)?)))
}

/// `--filter KEY=VALUE`, several of one key.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    by_key: BTreeMap<String, Vec<String>>,
    /// Of `expose`: ports of the container.
    exposed: Vec<PortRange>,
    /// Of `publish`: ports of the host.
    published: Vec<PortRange>,
}

const KEYS: [&str; 13] = [
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish",
    "since", "status",
];

impl Filters {
    fn parse(filters: &[String]) -> Result<Filters> {
        let known: Vec<&str> = KEYS.iter().copied().chain(["volume"]).collect();
        let mut parsed = Filters { by_key: keyed(filters, &known)?, ..Filters::default() };
        for value in parsed.of("status") {
            if !["created", "running", "paused", "restarting", "removing", "exited", "dead"].contains(&value.as_str()) {
                bail!("invalid filter 'status={value}'");
            }
        }
        for value in parsed.of("health") {
            if !["starting", "healthy", "unhealthy", "none"].contains(&value.as_str()) {
                bail!("unrecognized filter value for health: {value}");
            }
        }
        for value in parsed.of("exited") {
            if value.parse::<i64>().is_err() {
                bail!("invalid filter 'exited=[{value}]'");
            }
        }
        parsed.exposed = PortRange::all("expose", parsed.of("expose"))?;
        parsed.published = PortRange::all("publish", parsed.of("publish"))?;
        Ok(parsed)
    }

    fn of(&self, key: &str) -> &[String] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether containers that do not run are asked for.
    fn names_state(&self) -> bool {
        ["status", "exited"].iter().any(|key| !self.of(key).is_empty())
    }

    /// Whether a port is one of those that are asked for. Only a container that runs has ports.
    fn fit_ports(&self, found: &Found) -> bool {
        if self.exposed.is_empty() && self.published.is_empty() {
            return true;
        }
        let is_in = |ranges: &[PortRange], port: &str, protocol: &str| {
            ranges.iter().any(|range| range.contains(port, protocol))
        };
        let is_exposed =
            |port: &str| port.split_once('/').is_some_and(|(port, protocol)| is_in(&self.exposed, port, protocol));
        let is_published = |port: &str, address: &str| match (port.split_once('/'), address.rsplit_once(':')) {
            (Some((_, protocol)), Some((_, on_host))) => is_in(&self.published, on_host, protocol),
            _ => false,
        };
        let led = super::network::published(found);
        led.iter().any(|(port, address)| is_exposed(port) || is_published(port, address))
            || found.state.status.is_alive() && found.container.config.exposed_ports.keys().any(|port| is_exposed(port))
    }

    fn fit(&self, engine: &Engine, containers: &Containers, found: &Found) -> Result<bool> {
        let container = &found.container;
        let state = &found.state;
        let any = |key: &str, fits: &dyn Fn(&str) -> bool| {
            let wanted = self.of(key);
            wanted.is_empty() || wanted.iter().any(|value| fits(value))
        };
        let health = state.health.as_ref().map_or("none", |health| health.status.as_str());
        let name = format!("/{}", container.name);
        let plain = any("id", &|value| container.id.starts_with(value))
            && any("name", &|value| pattern::found(value, &container.name) || pattern::found(value, &name))
            && any("status", &|value| state.status.word() == value)
            && any("exited", &|value| state.status == Status::Exited && value.parse() == Ok(state.exit_code))
            && any("health", &|value| health == value)
            && any("volume", &|value| {
                container.mounts.iter().any(|mount| mount.name == value || mount.destination == value)
            })
            && any("network", &|value| super::inspect::network_names(container).iter().any(|network| network == value))
            && self.fit_ports(found)
            && self.of("label").iter().all(|value| has_label(&container.config.labels, value));
        if !plain {
            return Ok(false);
        }
        for value in self.of("before") {
            if container.created >= containers.find(value)?.container.created {
                return Ok(false);
            }
        }
        for value in self.of("since") {
            if container.created <= containers.find(value)?.container.created {
                return Ok(false);
            }
        }
        let ancestors = self.of("ancestor");
        let stands_on = |value: &String| {
            let same = value == &container.config.image
                || container.image.trim_start_matches("sha256:").starts_with(value.trim_start_matches("sha256:"));
            same || engine.inspect(value).is_ok_and(|image| image["Id"].as_str() == Some(&container.image))
        };
        Ok(ancestors.is_empty() || ancestors.iter().any(stands_on))
    }
}

/// Ports as a filter names them: `80`, `80/udp`, `8000-8099/tcp`.
#[derive(Debug, PartialEq, Eq)]
struct PortRange {
    first: u16,
    last: u16,
    protocol: String,
}

impl PortRange {
    fn all(key: &str, values: &[String]) -> Result<Vec<PortRange>> {
        let parse =
            |value: &String| Self::parse(value).with_context(|| format!("error while looking up for {key} {value}"));
        values.iter().map(parse).collect()
    }

    fn parse(text: &str) -> Result<PortRange> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |port: &str| port.parse::<u16>().ok().with_context(|| format!("invalid port \"{port}\""));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            bail!("invalid range specified for port: {ports}");
        }
        if !["tcp", "udp", "sctp"].contains(&protocol) {
            bail!("invalid proto: {protocol}");
        }
        Ok(PortRange { first, last, protocol: protocol.to_owned() })
    }

    /// Whether a port with this protocol is one of these.
    fn contains(&self, port: &str, protocol: &str) -> bool {
        self.protocol == protocol && port.parse().is_ok_and(|port: u16| (self.first..=self.last).contains(&port))
    }
}

/// Filters by key; an unknown key is an error, and so is a value that is neither yes nor no where only these are.
pub(crate) fn keyed(filters: &[String], known: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for filter in filters {
        let (key, value) =
            filter.split_once('=').with_context(|| format!("invalid filter '{filter}': expected KEY=VALUE"))?;
        // `label!=x` comes apart before the equals sign.
        let key = key.trim().to_lowercase();
        if !known.contains(&key.as_str()) {
            bail!("invalid filter '{key}'");
        }
        if ["dangling", "is-task"].contains(&key.as_str()) && !["true", "1", "false", "0"].contains(&value) {
            bail!("invalid filter '{key}=[{value}]'");
        }
        by_key.entry(key).or_default().push(value.to_owned());
    }
    Ok(by_key)
}

/// Whether labels have `key` or `key=value`.
pub(crate) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|own| own == value),
        None => labels.contains_key(wanted),
    }
}

/// An object without what it has not.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_filters_are_checked() {
        let parse = |filter: &str| Filters::parse(&[filter.to_owned()]);
        for right in ["exited=137", "publish=80", "publish=80-99/udp", "expose=1-65535/tcp", "is-task=0", "status=dead"]
        {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in [
            "exited=abc",
            "publish=abc",
            "publish=",
            "expose=9-8",
            "expose=1/x",
            "publish=70000",
            "is-task=x",
            "status=x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let error = format!("{:#}", parse("publish=abc").unwrap_err());
        assert!(error.contains("invalid port \"abc\""), "{error}");
        let error = keyed(&["dangling=maybe".to_owned()], &["dangling"]).unwrap_err().to_string();
        assert_eq!(error, "invalid filter 'dangling=[maybe]'");
    }

    #[test]
    fn ports_have_a_protocol() {
        let range = PortRange::parse("18000-18099").unwrap();
        assert!(range.contains("18000", "tcp") && range.contains("18099", "tcp"));
        assert!(!range.contains("18100", "tcp") && !range.contains("18000", "udp"));
        assert!(PortRange::parse("53/udp").unwrap().contains("53", "udp"));
    }
}
