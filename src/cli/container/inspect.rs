//! `inspect` of everything, and docker's form of a container.

use super::list::object;
use crate::cli::template::{OMITTED, Template};
use crate::cli::{Global, Outcome, report};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::io::Write;
use xbuild_engine::{Engine, EngineError};
use xbuild_runner::container::config::Container;
use xbuild_runner::container::{ContainerError, Found, Status, clock};
use xbuild_runner::network::{NetworkError, Networks};

/// What every `inspect` takes.
#[derive(clap::Args, Debug)]
pub(crate) struct InspectFlags {
    /// `json`, or a template
    #[arg(short, long)]
    pub(crate) format: Option<String>,
    /// Names or IDs
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

/// Flags of `container inspect`.
#[derive(clap::Args, Debug)]
pub(crate) struct ContainerInspectArgs {
    #[command(flatten)]
    common: InspectFlags,
    /// Show sizes of containers
    #[arg(short, long)]
    size: bool,
}

/// Flags of `inspect`.
#[derive(clap::Args, Debug)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    any: ContainerInspectArgs,
    /// Only this kind: `container`, `image`, `network` or `volume`
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<String>,
}

pub(crate) fn inspect(args: &InspectArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let kinds: &[&str] = match args.kind.as_deref() {
        None | Some("") => &["container", "image", "network", "volume"],
        Some("container") => &["container"],
        Some("image") => &["image"],
        Some("network") => &["network"],
        Some("volume") => &["volume"],
        Some(other) => bail!("\"{other}\" is not a valid value for --type"),
    };
    args.any.show(&engine, kinds)
}

pub(crate) fn containers(args: &ContainerInspectArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    args.show(&engine, &["container"])
}

impl ContainerInspectArgs {
    fn show(&self, engine: &Engine, kinds: &[&str]) -> Result<Outcome> {
        self.common.show(|name| look_up(engine, name, kinds, self.size))
    }
}

impl InspectFlags {
    /// Shows objects: those that are there, and an error for each of the others.
    pub(crate) fn show(&self, look: impl Fn(&str) -> Result<Value>) -> Result<Outcome> {
        show(&self.names, self.format.as_deref(), look)
    }
}

fn show(names: &[String], format: Option<&str>, look: impl Fn(&str) -> Result<Value>) -> Result<Outcome> {
    let template = match format {
        None | Some("" | "json") => None,
        Some(text) => Some(Template::parse(text)?),
    };
    let mut outcome = Outcome::Success;
    let mut objects = Vec::new();
    let mut out = std::io::stdout().lock();
    let mut errors = Vec::new();
    for name in names {
        match (look(name), &template) {
            (Ok(value), Some(template)) => writeln!(out, "{}", template.execute(&complete(value))?)?,
            (Ok(value), None) => objects.push(value),
            (Err(error), _) => errors.push(error),
        }
    }
    match (&template, format) {
        (Some(_), _) => {}
        (None, Some("json")) => {
            for object in &objects {
                writeln!(out, "{}", serde_json::to_string(object)?)?;
            }
        }
        (None, _) => writeln!(out, "{}", serde_json::to_string_pretty(&objects)?)?,
    }
    for error in &errors {
        report::error(error);
        outcome = Outcome::Code(1);
    }
    Ok(outcome)
}

fn look_up(engine: &Engine, name: &str, kinds: &[&str], size: bool) -> Result<Value> {
    for kind in kinds {
        let found = match *kind {
            "container" => match engine.containers().find(name) {
                Ok(found) => Some(container(engine, &found, size)?),
                Err(ContainerError::Missing(_)) => None,
                Err(error) => return Err(error.into()),
            },
            "image" => match engine.inspect(name) {
                Ok(image) => Some(image),
                Err(EngineError::NoImage(_)) => None,
                Err(error) => return Err(error.into()),
            },
            "volume" => engine.volumes().get(name).ok().map(|volume| super::volume::shown(&volume)),
            _ => {
                let networks = Networks::open(engine.store().root(), clock::stamp)?;
                match networks.find(name) {
                    Ok(network) => Some(super::network::shown(&networks, &network)?),
                    Err(NetworkError::NotFound(_)) => None,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    match kinds {
        [one] => bail!("No such {one}: {name}"),
        _ => bail!("No such object: {name}"),
    }
}

/// Gives templates the fields that docker leaves out of JSON when they are empty.
fn complete(mut value: Value) -> Value {
    let config = json!({
        "StopSignal": "", "StopTimeout": null, "Healthcheck": null, "ExposedPorts": {}, "Shell": null, "Volumes": null,
        "Labels": {}, "Entrypoint": null, "Cmd": null, "User": "", "WorkingDir": "", "Env": null, "OnBuild": null,
        "ArgsEscaped": false, "MacAddress": "", "NetworkDisabled": false,
    });
    omit(value.get_mut("State"), json!({"Health": null}));
    omit(value.get_mut("Config"), config);
    let host = json!({
        "Tmpfs": {}, "Sysctls": {}, "Mounts": [], "StorageOpt": null, "Annotations": null, "MaskedPaths": null,
        "ReadonlyPaths": null,
    });
    omit(value.get_mut("HostConfig"), host);
    for mount in value.get_mut("Mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        omit(Some(mount), json!({"Name": "", "Driver": ""}));
    }
    value
}

fn omit(object: Option<&mut Value>, fields: Value) {
    if let Some(Value::Object(map)) = object {
        map.insert(OMITTED.to_owned(), fields);
    }
}

/// An object with the fields that docker always shows and that are the same for every container here.
fn with(value: Value, fields: Value) -> Value {
    let mut map = object(fields);
    map.append(&mut object(value));
    map.into()
}

fn host_config(container: &Container) -> Result<Value> {
    let fields = json!({
        "BlkioWeightDevice": [],
        "Cgroup": "",
        "CpuCount": 0,
        "CpuPercent": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "IOMaximumBandwidth": 0,
        "IOMaximumIOps": 0,
        "Isolation": "",
        "Links": null,
        "VolumeDriver": "",
    });
    Ok(with(serde_json::to_value(&container.host_config)?, fields))
}

fn network_settings(found: &Found) -> Result<Value> {
    let fields = json!({
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
    });
    Ok(with(super::network::settings(found)?, fields))
}

/// A container as docker shows it.
pub(crate) fn container(engine: &Engine, found: &Found, size: bool) -> Result<Value> {
    let container = &found.container;
    let state = &found.state;
    let directory = found.directory.display().to_string();
    let command = container.command();
    let (path, arguments) = command.split_first().map_or(("", &[][..]), |(path, rest)| (path.as_str(), rest));
    let mut shown_state = json!({
        "Status": state.status.word(),
        "Running": matches!(state.status, Status::Running | Status::Paused | Status::Restarting),
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": state.finished_at,
    });
    if let (Some(health), Value::Object(map)) = (&state.health, &mut shown_state) {
        map.insert("Health".to_owned(), serde_json::to_value(health)?);
    }
    let file = |name: &str| format!("{directory}/{name}");
    let mut shown = json!({
        "Id": container.id,
        "Created": container.created,
        "Path": path,
        "Args": arguments,
        "State": shown_state,
        "Image": container.image,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": if container.host_config.log_config.kind == "none" { String::new() } else { file("json.log") },
        "Name": format!("/{}", container.name),
        "RestartCount": state.restart_count,
        "Driver": "overlay2",
        "Platform": container.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(container)?,
        "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": file("fs"), "WorkDir": file("work")}},
        "Mounts": mounts(container)?,
        "Config": container.config,
        "NetworkSettings": network_settings(found)?,
    });
    if let (true, Value::Object(map)) = (size, &mut shown) {
        let own = super::changes::disk_size(&found.directory.join("fs"));
        let below = engine.tree_size(container.tree)?;
        map.insert("SizeRw".to_owned(), own.into());
        map.insert("SizeRootFs".to_owned(), (own + below).into());
    }
    Ok(shown)
}

/// Mounts without what only this program knows of them.
fn mounts(container: &Container) -> Result<Vec<Value>> {
    let one = |mount| {
        let mut map = object(serde_json::to_value(mount)?);
        for own in ["Anonymous", "CopyUp", "NonRecursive"] {
            map.remove(own);
        }
        Ok(Value::Object(map))
    };
    container.mounts.iter().map(one).collect()
}

/// Names of the networks that a container belongs to.
pub(crate) fn network_names(container: &Container) -> Vec<String> {
    match container.host_config.network_mode.as_str() {
        mode @ ("host" | "none") => vec![mode.to_owned()],
        mode if mode.starts_with("container:") => Vec::new(),
        _ => container.networks.keys().cloned().collect(),
    }
}
