//! `system prune`, `info`, `version`.

use super::container::{Chosen, PruneArgs, confirmed, prune_containers, prune_volumes, say_reclaimed};
use super::image::prune_images;
use super::template::Template;
use super::{Global, Outcome, usage};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write;
use xbuild_cache::PruneFilter;
use xbuild_runner::container::Status;
use xbuild_runner::rootless::Standing;

/// `system …`.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum SystemCommand {
    /// Show what takes room
    Df(usage::DfArgs),
    /// Show what happens
    Events(super::container::EventsArgs),
    /// Show facts about this host and store
    Info(InfoArgs),
    /// Remove containers, volumes, images and cache that nobody uses
    Prune(SystemPruneArgs),
}

/// Flags of `info` and `version`.
#[derive(clap::Args, Debug)]
pub(crate) struct InfoArgs {
    /// `json`, or a template
    #[arg(short, long)]
    format: Option<String>,
}

/// Flags of `system prune`.
#[derive(clap::Args, Debug)]
pub(crate) struct SystemPruneArgs {
    /// Also images that have a name
    #[arg(short, long)]
    all: bool,
    /// Also nameless volumes
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    common: PruneArgs,
}

pub(crate) fn system(command: &SystemCommand, global: &Global) -> Result<Outcome> {
    match command {
        SystemCommand::Df(args) => usage::df(args, global),
        SystemCommand::Events(args) => super::container::events(args, global),
        SystemCommand::Info(args) => info(args, global),
        SystemCommand::Prune(args) => prune(args, global),
    }
}

fn prune(args: &SystemPruneArgs, global: &Global) -> Result<Outcome> {
    let what = "all stopped containers, all networks not used by at least one container, unused images and build cache";
    if !confirmed(args.common.force, what)? {
        return Ok(Outcome::Success);
    }
    let engine = global.engine()?;
    let chosen = Chosen::parse(&args.common.filter)?;
    let mut freed = prune_containers(&engine.containers(), &chosen)?;
    super::container::prune_networks(&engine, &chosen)?;
    if args.volumes {
        freed += prune_volumes(&engine.containers(), &engine.volumes(), &chosen, false)?;
    }
    freed += prune_images(&engine, &chosen, args.all)?;
    // Recorded steps have no labels: a filter by label leaves them alone.
    if args.common.filter.is_empty() {
        let pruned = engine.store().prune(&PruneFilter { all: args.all, ..PruneFilter::default() })?;
        freed += pruned.bytes;
    }
    say_reclaimed(freed)?;
    global.sweep_later(&engine);
    Ok(Outcome::Success)
}

/// Version, as docker's commands show it.
fn version_of() -> Value {
    let system = rustix::system::uname();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": "1.45",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": system.release().to_string_lossy(),
    })
}

pub(crate) fn version(args: &InfoArgs) -> Result<Outcome> {
    let own = version_of();
    // There is no server: what runs containers is this program.
    let all = json!({"Client": own, "Server": own});
    let mut out = std::io::stdout();
    match args.format.as_deref().filter(|format| !format.is_empty()) {
        Some("json") => writeln!(out, "{all}")?,
        Some(text) => writeln!(out, "{}", Template::parse(text)?.execute(&all)?)?,
        None => {
            writeln!(out, "Client:")?;
            for (name, key) in [("Version", "Version"), ("OS/Arch", "Os"), ("Kernel", "KernelVersion")] {
                let value = own[key].as_str().unwrap_or_default();
                let value = if key == "Os" {
                    format!("{value}/{}", own["Arch"].as_str().unwrap_or_default())
                } else {
                    value.to_owned()
                };
                writeln!(out, " {name:<10} {value}")?;
            }
        }
    }
    Ok(Outcome::Success)
}

pub(crate) fn info(args: &InfoArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let all = engine.containers().list()?;
    let count = |status: Status| all.iter().filter(|found| found.state.status == status).count();
    let (running, paused) = (count(Status::Running) + count(Status::Restarting), count(Status::Paused));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let version = version_of();
    let mut options = vec!["name=seccomp,profile=builtin", "name=cgroupns"];
    if global.rights.standing != Standing::Root {
        options.push("name=rootless");
    }
    let info = json!({
        "Containers": all.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": all.len() - running - paused,
        "Images": engine.list()?.len(),
        "Driver": "overlay2",
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        "KernelVersion": version["KernelVersion"],
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory.unwrap_or(0) * 1024,
        "DockerRootDir": engine.store().root(),
        "Name": rustix::system::uname().nodename().to_string_lossy(),
        "ServerVersion": version["Version"],
        "SecurityOptions": options,
        "Rootless": global.rights.line(&engine),
    });
    let mut out = std::io::stdout();
    match args.format.as_deref().filter(|format| !format.is_empty()) {
        Some("json") => writeln!(out, "{info}")?,
        Some(text) => writeln!(out, "{}", Template::parse(text)?.execute(&info)?)?,
        None => {
            if let Value::Object(map) = &info {
                for (key, value) in map {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    writeln!(out, "{key}: {value}")?;
                }
            }
        }
    }
    Ok(Outcome::Success)
}
