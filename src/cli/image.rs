//! Commands on images of the store.

use super::build::full_name;
use super::container::{Chosen, PruneArgs, at, confirmed, has_label, keyed, say_reclaimed};
use super::format::{self, LABELS, Shape, human};
use super::{Global, Outcome, time};
use crate::progress::{Mode, Progress};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use xbuild_engine::images::Summary;
use xbuild_engine::{Engine, EngineError};
use xbuild_oci::Reference;
use xbuild_runner::container::clock;

/// Flags of `images`.
#[derive(clap::Args, Debug)]
pub(crate) struct ImagesArgs {
    /// Also images that only others stand on; there are none here
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only what fits (`reference=…`, `label=k=v`, `dangling=true`, `before=…`, `since=…`)
    #[arg(short, long)]
    filter: Vec<String>,
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only this repository, or this name
    name: Option<String>,
}

/// Flags of `history`.
#[derive(clap::Args, Debug)]
pub(crate) struct HistoryArgs {
    /// `table`, `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Sizes and dates for people
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    human: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten instructions
    #[arg(long)]
    no_trunc: bool,
    /// Name or ID
    name: String,
}

/// Flags of `tag`.
#[derive(clap::Args, Debug)]
pub(crate) struct TagArgs {
    source: String,
    target: String,
}

/// Flags of `rmi`.
#[derive(clap::Args, Debug)]
pub(crate) struct RmiArgs {
    /// Remove all names of an ID
    #[arg(short, long)]
    force: bool,
    /// Names or IDs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Flags of `save`.
#[derive(clap::Args, Debug)]
pub(crate) struct SaveArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or ID
    #[arg(required = true)]
    names: Vec<String>,
}

/// Flags of `load`.
#[derive(clap::Args, Debug)]
pub(crate) struct LoadArgs {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print nothing but names
    #[arg(short, long)]
    quiet: bool,
}

/// `image …`.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum ImageGroup {
    /// Show how an image was made
    History(HistoryArgs),
    /// Make an image of a tar of files
    Import(super::container::ImportArgs),
    /// Show details of images
    Inspect(super::container::InspectFlags),
    /// Read images from an archive
    Load(LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images that nobody uses
    Prune(ImagePruneArgs),
    /// Fetch an image from a registry
    Pull(super::registry::PullArgs),
    /// Send an image to a registry
    Push(super::registry::PushArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Give an image another name
    Tag(TagArgs),
}

/// Flags of `image prune`.
#[derive(clap::Args, Debug)]
pub(crate) struct ImagePruneArgs {
    /// Also images that have a name
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    common: PruneArgs,
}

pub(crate) fn group(command: &ImageGroup, global: &Global) -> Result<Outcome> {
    match command {
        ImageGroup::History(args) => history(args, global),
        ImageGroup::Import(args) => super::container::import(args, global),
        ImageGroup::Inspect(args) => {
            let engine = global.engine()?;
            args.show(|name| Ok(engine.inspect(name)?))
        }
        ImageGroup::Load(args) => load(args, global),
        ImageGroup::Ls(args) => images(args, global),
        ImageGroup::Prune(args) => prune(args, global),
        ImageGroup::Pull(args) => super::registry::pull(args, global),
        ImageGroup::Push(args) => super::registry::push(args, global),
        ImageGroup::Rm(args) => rmi(args, global),
        ImageGroup::Save(args) => save(args, global),
        ImageGroup::Tag(args) => tag(args, global),
    }
}

fn prune(args: &ImagePruneArgs, global: &Global) -> Result<Outcome> {
    let what =
        if args.all { "all images without at least one container associated to them" } else { "all dangling images" };
    if !confirmed(args.common.force, what)? {
        return Ok(Outcome::Success);
    }
    let engine = global.engine()?;
    let all =
        args.all || args.common.filter.iter().any(|filter| matches!(filter.as_str(), "dangling=false" | "dangling=0"));
    let freed = prune_images(&engine, &Chosen::parse(&args.common.filter)?, all)?;
    say_reclaimed(freed)?;
    global.sweep_later(&engine);
    Ok(Outcome::Success)
}

/// Removes images that no container has, those with a name only if `all`; says which, and gives the bytes.
pub(crate) fn prune_images(engine: &Engine, chosen: &Chosen, all: bool) -> Result<u64> {
    let used: Vec<String> = engine.containers().list()?.into_iter().map(|found| found.container.image).collect();
    let mut gone = Vec::new();
    let mut freed = 0;
    for image in engine.list()? {
        let created = image.created.as_deref().and_then(clock::parse).unwrap_or_default().0;
        let kept = (image.name.is_some() && !all) || used.contains(&image.id.to_string());
        if kept || !chosen.takes(&image.labels, created) {
            continue;
        }
        let name = match &image.name {
            Some(name) => name.parse::<Reference>()?.familiar(),
            None => image.id.to_string(),
        };
        for line in engine.remove(&name, true)? {
            let line = line.replace("Untagged:", "untagged:").replace("Deleted:", "deleted:");
            freed += if line.starts_with("deleted:") { image.size } else { 0 };
            gone.push(line);
        }
    }
    super::container::list_gone("Images", &gone)?;
    Ok(freed)
}

const IMAGE_HEADERS: [(&str, &str); 8] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
];

/// Repository and tag, as lists show them.
pub(crate) fn shown_name(image: &Summary) -> Result<(String, String)> {
    let none = || "<none>".to_owned();
    let Some(name) = &image.name else { return Ok((none(), none())) };
    let own: Reference = name.parse()?;
    let bare = Reference { tag: None, digest: None, ..own.clone() };
    Ok((bare.familiar(), own.tag.unwrap_or_else(none)))
}

pub(crate) fn images(args: &ImagesArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let filters = keyed(&args.filter, &["before", "dangling", "label", "reference", "since", "until"])?;
    let created = |name: &str| {
        let image = engine.inspect(name)?;
        let created = clock::parse(image["Created"].as_str().unwrap_or_default());
        created.with_context(|| format!("the image {name} has no time"))
    };
    let (mut before, mut since) = (Vec::new(), Vec::new());
    for (key, values) in &filters {
        match key.as_str() {
            "before" => before = values.iter().map(|name| created(name)).collect::<Result<_>>()?,
            "since" => since = values.iter().map(|name| created(name)).collect::<Result<_>>()?,
            _ => {}
        }
    }
    let mut rows = Vec::new();
    for image in engine.list()? {
        let reference = image.name.as_deref().map(str::parse::<Reference>).transpose()?;
        let time = image.created.as_deref().and_then(clock::parse).unwrap_or_default();
        let fits = filters.iter().all(|(key, values)| match key.as_str() {
            "label" => values.iter().all(|value| has_label(&image.labels, value)),
            "dangling" => values.iter().any(|value| matches!(value.as_str(), "true" | "1") == reference.is_none()),
            "reference" => reference.as_ref().is_some_and(|own| values.iter().any(|value| is_like(own, value))),
            _ => true,
        }) && before.iter().all(|bound| time < *bound)
            && since.iter().all(|bound| time > *bound);
        if !fits || args.name.as_ref().is_some_and(|name| !reference.as_ref().is_some_and(|own| is_like(own, name))) {
            continue;
        }
        let (repository, tag) = shown_name(&image)?;
        rows.push(json!({
            "Repository": repository,
            "Tag": tag,
            "Digest": image.repository_digest.map_or_else(|| "<none>".to_owned(), |digest| digest.to_string()),
            "ID": if args.no_trunc { image.id.to_string() } else { image.id.hex()[..12].to_owned() },
            "CreatedSince": time::ago(time.0 * 1000),
            "CreatedAt": at(time.0),
            "Size": human(image.size),
            "Containers": "N/A",
            "SharedSize": "N/A",
            "UniqueSize": "N/A",
            "VirtualSize": human(image.size),
            LABELS: image.labels,
        }));
    }
    let default = match args.digests {
        true => "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
        false => "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    };
    if args.quiet && args.format.is_none() {
        let mut seen = std::collections::BTreeSet::new();
        rows.retain(|row| seen.insert(row["ID"].to_string()));
    }
    let shape = Shape { headers: &IMAGE_HEADERS, default, quiet: "{{.ID}}" };
    format::print(&mut std::io::stdout().lock(), &shape, args.format.as_deref(), args.quiet, &rows)?;
    Ok(Outcome::Success)
}

/// Whether a name is that of a repository, or of an image, or fits a pattern for either.
fn is_like(own: &Reference, pattern: &str) -> bool {
    let bare = Reference { tag: None, digest: None, ..own.clone() }.familiar();
    let full = own.familiar();
    let fits = |text: &str| xbuild_engine::images::name_fits(pattern, text);
    fits(&bare) || fits(&full) || fits(&own.to_string()) || fits(&own.name())
}

const HISTORY_HEADERS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

pub(crate) fn history(args: &HistoryArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let lines = engine.history(&args.name)?;
    let id = engine.inspect(&args.name)?["Id"].as_str().unwrap_or_default().to_owned();
    let short = |id: &str| match args.no_trunc {
        true => id.to_owned(),
        false => id.trim_start_matches("sha256:").chars().take(12).collect(),
    };
    let rows: Vec<Value> = lines
        .into_iter()
        .enumerate()
        .map(|(n, line)| {
            let time = clock::parse(&line.created).unwrap_or_default();
            let by = line.created_by.replace(['\n', '\t'], " ");
            let by = match args.no_trunc || by.chars().count() <= 45 {
                true => by,
                false => by.chars().take(44).chain(['…']).collect(),
            };
            json!({
                "ID": if n == 0 { short(&id) } else { "<missing>".to_owned() },
                "CreatedSince": if args.human { time::ago(time.0 * 1000) } else { line.created.clone() },
                "CreatedAt": line.created,
                "CreatedBy": by,
                "Size": if args.human { human(line.size) } else { line.size.to_string() },
                "Comment": line.comment,
            })
        })
        .collect();
    let default = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
    let shape = Shape { headers: &HISTORY_HEADERS, default, quiet: "{{.ID}}" };
    format::print(&mut std::io::stdout().lock(), &shape, args.format.as_deref(), args.quiet, &rows)?;
    Ok(Outcome::Success)
}

pub(crate) fn tag(args: &TagArgs, global: &Global) -> Result<Outcome> {
    global.engine()?.tag(&args.source, &full_name(&args.target)?)?;
    Ok(Outcome::Success)
}

pub(crate) fn rmi(args: &RmiArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let mut outcome = Outcome::Success;
    for name in &args.names {
        match engine.remove(name, args.force) {
            Ok(lines) => lines.iter().try_for_each(|line| writeln!(std::io::stdout(), "{line}"))?,
            Err(error) => {
                let harmless = args.force && matches!(error, EngineError::NoImage(_));
                super::report::error(&error.into());
                if !harmless {
                    outcome = Outcome::Code(1);
                }
            }
        }
    }
    Ok(outcome)
}

pub(crate) fn save(args: &SaveArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    match &args.output {
        None => {
            let mut out = std::io::BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            engine.save(&args.names, &mut out)?;
            out.flush()?;
        }
        Some(path) => {
            super::write_whole(path, 0o600, |out| Ok(engine.save(&args.names, out)?))?;
        }
    }
    Ok(Outcome::Success)
}

pub(crate) fn load(args: &LoadArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let progress = Progress::start(if args.quiet { Mode::Quiet } else { Mode::Auto });
    let names = match &args.input {
        None => engine.load_archive(&mut std::io::stdin().lock(), progress.sink()),
        Some(path) => {
            let mut file = std::fs::File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
            engine.load_archive(&mut file, progress.sink())
        }
    };
    progress.finish();
    for name in names? {
        let kind = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        writeln!(std::io::stdout(), "{kind}: {name}")?;
    }
    Ok(Outcome::Success)
}
