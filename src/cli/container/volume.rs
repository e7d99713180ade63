//! `volume …`.

use super::each;
use super::list::{has_label, keyed};
use super::values::pair;
use crate::cli::format::{self, LABELS, Shape, human};
use crate::cli::{Global, Outcome};
use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use xbuild_runner::container::volumes::{Volume, Volumes};
use xbuild_runner::container::{Containers, clock};

/// Commands on volumes.
#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// Show details of volumes
    Inspect(super::InspectFlags),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Remove volumes that nobody uses
    Prune(super::prune::VolumePruneArgs),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

/// Flags of `volume create`.
#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    /// Driver: `local`
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Option of the driver: `type=none`, `o=bind` and `device=DIR` make it a directory of the host
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Name
    name: Option<String>,
}

/// Flags of `volume ls`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// Only what fits (`name=x`, `label=k=v`, `dangling=true`, `driver=local`)
    #[arg(short, long)]
    filter: Vec<String>,
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `volume rm`.
#[derive(clap::Args, Debug)]
pub(crate) struct RemoveArgs {
    /// No error for volumes that are not there
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) fn volume(command: &VolumeCommand, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let volumes = Volumes::beside(&containers);
    match command {
        VolumeCommand::Create(args) => create(args, &containers, &volumes),
        VolumeCommand::Inspect(args) => args.show(|name| Ok(shown(&volumes.get(name)?))),
        VolumeCommand::Ls(args) => list(args, &containers, &volumes),
        VolumeCommand::Prune(args) => super::prune::volumes(args, &containers, &volumes),
        VolumeCommand::Rm(args) => each(&args.names, |name| {
            if args.force && volumes.get(name).is_err() {
                return Ok(Some(name.to_owned()));
            }
            remove(&containers, &volumes, name)?;
            Ok(Some(name.to_owned()))
        }),
    }
}

fn create(args: &CreateArgs, containers: &Containers, volumes: &Volumes) -> Result<Outcome> {
    if args.driver != "local" {
        bail!("volume driver `{}` is not there: only `local` is", args.driver);
    }
    let options: BTreeMap<String, String> = args.options.iter().map(|option| pair(option)).collect();
    check_options(&options)?;
    let labels = args.label.iter().map(|label| pair(label)).collect();
    let name = args.name.clone().filter(|name| !name.is_empty());
    let anonymous = name.is_none();
    let name = name.unwrap_or_else(random_name);
    let (_, new) = volumes.create(&name, &labels, &options, anonymous)?;
    if new {
        event(containers, "create", &name);
    }
    super::lifecycle::say(&name)?;
    Ok(Outcome::Success)
}

/// Of what docker's driver can mount, a directory of the host is there.
fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    let of = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    if let Some(unknown) = options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device")) {
        bail!("invalid option: \"{unknown}\"");
    }
    let is_bind = of("type") == "none" && of("o").split(',').any(|option| matches!(option, "bind" | "rbind"));
    if !options.is_empty() && !is_bind {
        bail!(
            "volumes of type `{}` are not there: only directories of the host are (type=none, o=bind, device=DIR)",
            of("type")
        );
    }
    if is_bind && !of("device").starts_with('/') {
        bail!("a volume that is a directory of the host needs its absolute path: --opt device=DIR");
    }
    Ok(())
}

fn random_name() -> String {
    let mut bytes = [0; 32];
    // So few bytes never fail once the machine has started.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn event(containers: &Containers, action: &str, name: &str) {
    let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    containers.events().add("volume", action, name, attributes);
}

/// Removes a volume that no container has.
pub(crate) fn remove(containers: &Containers, volumes: &Volumes, name: &str) -> Result<()> {
    volumes.get(name)?;
    let users = volumes.users(containers, name)?;
    if !users.is_empty() {
        bail!("remove {name}: volume is in use - [{}]", users.join(", "));
    }
    volumes.remove(name)?;
    event(containers, "destroy", name);
    Ok(())
}

/// A volume as docker shows it.
pub(crate) fn shown(volume: &Volume) -> Value {
    let some = |map| Some(map).filter(|map: &&BTreeMap<String, String>| !map.is_empty());
    json!({
        "CreatedAt": volume.created_at,
        "Driver": volume.driver,
        "Labels": some(&volume.labels),
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": some(&volume.options),
        "Scope": volume.scope,
    })
}

const HEADERS: [(&str, &str); 6] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Size", "SIZE"),
];

fn list(args: &ListArgs, containers: &Containers, volumes: &Volumes) -> Result<Outcome> {
    let filters = keyed(&args.filter, &["dangling", "driver", "label", "name"])?;
    let mut rows = Vec::new();
    for volume in volumes.list()? {
        let mut fits = true;
        for (key, values) in &filters {
            fits &= match key.as_str() {
                "label" => values.iter().all(|value| has_label(&volume.labels, value)),
                "name" => values.iter().any(|value| super::pattern::found(value, &volume.name)),
                "driver" => values.contains(&volume.driver),
                _ => {
                    let unused = volumes.users(containers, &volume.name)?.is_empty();
                    values.iter().any(|value| matches!(value.as_str(), "true" | "1") == unused)
                }
            };
        }
        if fits {
            let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            rows.push(json!({
                "Driver": volume.driver,
                "Name": volume.name,
                "Scope": volume.scope,
                "Mountpoint": volume.mountpoint,
                "Labels": labels.join(","),
                "Size": "N/A",
                LABELS: volume.labels,
            }));
        }
    }
    let shape = Shape { headers: &HEADERS, default: "{{.Driver}}\t{{.Name}}", quiet: "{{.Name}}" };
    format::print(&mut std::io::stdout().lock(), &shape, args.format.as_deref(), args.quiet, &rows)?;
    Ok(Outcome::Success)
}

/// Says how much was freed.
pub(crate) fn say_reclaimed(bytes: u64) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "Total reclaimed space: {}", human(bytes))?)
}

/// Seconds since 1970 of a time that was written down.
pub(crate) fn seconds(text: &str) -> i64 {
    clock::parse(text).map_or(0, |(seconds, _)| seconds)
}
