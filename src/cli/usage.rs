//! `system df`: what takes room.

use super::container::{container_row, disk_size, disk_use};
use super::format::{self, Shape, human};
use super::image::shown_name;
use super::{Global, Outcome, time};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write;
use xbuild_cache::{Usage, UsageKind};
use xbuild_engine::Engine;
use xbuild_engine::images::Summary;
use xbuild_runner::container::{Found, Status, clock};

/// Flags of `system df`.
#[derive(clap::Args, Debug)]
pub(crate) struct DfArgs {
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Show every image, container, volume and recorded step
    #[arg(short, long, conflicts_with = "format")]
    verbose: bool,
}

pub(crate) fn df(args: &DfArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let mut out = std::io::stdout().lock();
    if args.verbose {
        every_one(&engine, &mut out)?;
        return Ok(Outcome::Success);
    }
    let rows = [images(&engine)?, containers(&engine)?, volumes(&engine)?, cache(&engine)?];
    let shape = Shape {
        headers: &HEADERS,
        default: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
        quiet: "{{.Type}}",
    };
    format::print(&mut out, &shape, args.format.as_deref(), false, &rows)?;
    Ok(Outcome::Success)
}

const HEADERS: [(&str, &str); 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];

/// A row: sizes with whether each is in use.
fn row(kind: &str, sizes: &[(u64, bool)]) -> Value {
    let total: u64 = sizes.iter().map(|(size, _)| size).sum();
    let free: u64 = sizes.iter().filter(|(_, used)| !used).map(|(size, _)| size).sum();
    let share = (free * 100).checked_div(total).map(|percent| format!(" ({percent}%)")).unwrap_or_default();
    json!({
        "Type": kind,
        "TotalCount": sizes.len().to_string(),
        "Active": sizes.iter().filter(|(_, used)| *used).count().to_string(),
        "Size": human(total),
        "Reclaimable": format!("{}{share}", human(free)),
    })
}

fn images(engine: &Engine) -> Result<Value> {
    let used: Vec<String> = engine.containers().list()?.into_iter().map(|found| found.container.image).collect();
    let mut seen = std::collections::BTreeSet::new();
    let images = engine.list()?.into_iter().filter(|image| seen.insert(image.id));
    let sizes: Vec<(u64, bool)> = images.map(|image| (image.size, used.contains(&image.id.to_string()))).collect();
    Ok(row("Images", &sizes))
}

fn containers(engine: &Engine) -> Result<Value> {
    let size = |found: &Found| {
        let runs = matches!(found.state.status, Status::Running | Status::Paused | Status::Restarting);
        (disk_size(&found.directory.join("fs")), runs)
    };
    let sizes: Vec<(u64, bool)> = engine.containers().list()?.iter().map(size).collect();
    Ok(row("Containers", &sizes))
}

fn volumes(engine: &Engine) -> Result<Value> {
    let (containers, volumes) = (engine.containers(), engine.volumes());
    let all = containers.list()?;
    let used = |name: &str| all.iter().any(|found| found.container.mounts.iter().any(|mount| mount.name == name));
    let list = volumes.list()?;
    let sizes: Vec<(u64, bool)> =
        list.iter().map(|volume| (disk_size(&volumes.data(&volume.name)), used(&volume.name))).collect();
    Ok(row("Local Volumes", &sizes))
}

fn cache(engine: &Engine) -> Result<Value> {
    let sizes: Vec<(u64, bool)> = recorded(engine)?.map(|entry| (entry.size, !entry.reclaimable)).collect();
    Ok(row("Build Cache", &sizes))
}

/// Recorded steps and cache mounts.
fn recorded(engine: &Engine) -> Result<impl Iterator<Item = Usage>> {
    let all = engine.store().usage()?.into_iter();
    Ok(all.filter(|entry| matches!(entry.kind, UsageKind::Regular | UsageKind::CacheMount)))
}

/// The tables of `--verbose`.
fn every_one(engine: &Engine, out: &mut impl Write) -> Result<()> {
    let all = engine.containers().list()?;
    section(out, "Images space usage:", &IMAGE, &image_rows(engine, &all)?)?;
    let container = |found: &Found| Ok(container_row(found, false, &disk_use(engine, found)?));
    let containers = all.iter().map(container).collect::<Result<Vec<_>>>()?;
    section(out, "\nContainers space usage:", &CONTAINER, &containers)?;
    section(out, "\nLocal Volumes space usage:", &VOLUME, &volume_rows(engine, &all)?)?;
    let steps: Vec<Usage> = recorded(engine)?.collect();
    let total = steps.iter().map(|entry| entry.size).sum();
    let title = format!("\nBuild cache usage: {}", human(total));
    section(out, &title, &CACHE, &steps.iter().map(cache_row).collect::<Vec<_>>())
}

type Columns<const N: usize> = [(&'static str, &'static str); N];

const IMAGE: Columns<8> = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const CONTAINER: Columns<8> = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Size", "SIZE"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Names", "NAMES"),
];
const VOLUME: Columns<3> = [("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")];
const CACHE: Columns<7> = [
    ("ID", "CACHE ID"),
    ("CacheType", "CACHE TYPE"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
    ("UsageCount", "USAGE"),
    ("Shared", "SHARED"),
];

fn section(out: &mut impl Write, title: &str, columns: &[(&str, &str)], rows: &[Value]) -> Result<()> {
    writeln!(out, "{title}\n")?;
    let fields: Vec<String> = columns.iter().map(|(field, _)| format!("{{{{.{field}}}}}")).collect();
    let shape = Shape { headers: columns, default: &fields.join("\t"), quiet: "" };
    format::print(out, &shape, None, false, rows)
}

fn image_rows(engine: &Engine, containers: &[Found]) -> Result<Vec<Value>> {
    let one = |image: Summary| {
        let (repository, tag) = shown_name(&image)?;
        let id = image.id.to_string();
        let created = image.created.as_deref().and_then(clock::parse).unwrap_or_default();
        Ok(json!({
            "Repository": repository,
            "Tag": tag,
            "ID": &image.id.hex()[..12],
            "CreatedSince": time::ago(created.0 * 1000),
            "Size": human(image.size),
            "SharedSize": human(image.shared),
            "UniqueSize": human(image.size - image.shared),
            "Containers": containers.iter().filter(|found| found.container.image == id).count().to_string(),
        }))
    };
    engine.list()?.into_iter().map(one).collect()
}

fn volume_rows(engine: &Engine, containers: &[Found]) -> Result<Vec<Value>> {
    let volumes = engine.volumes();
    let links = |name: &str| {
        let has = |found: &&Found| found.container.mounts.iter().any(|mount| mount.name == name);
        containers.iter().filter(has).count().to_string()
    };
    let list = volumes.list()?;
    let row = |name: &str| json!({"Name": name, "Links": links(name), "Size": human(disk_size(&volumes.data(name)))});
    Ok(list.iter().map(|volume| row(&volume.name)).collect())
}

fn cache_row(entry: &Usage) -> Value {
    json!({
        "ID": entry.id,
        "CacheType": match entry.kind {
            UsageKind::CacheMount => "exec.cachemount",
            _ => "regular",
        },
        "Size": human(entry.size),
        "CreatedSince": time::ago(entry.created),
        "LastUsedSince": time::ago(entry.last_used),
        "UsageCount": entry.uses.to_string(),
        "Shared": (!entry.reclaimable).to_string(),
    })
}
