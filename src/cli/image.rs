//! Commands on images of the store.

use super::build::full_name;
use super::{Global, Outcome, time};
use crate::progress::{Mode, Progress, bytes};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use xbuild_graph::Platform;
use xbuild_oci::Reference;

/// Flags of `images`.
#[derive(clap::Args, Debug)]
pub(crate) struct ImagesArgs {
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Only this repository, or this name
    name: Option<String>,
}

/// Flags of `inspect`.
#[derive(clap::Args, Debug)]
pub(crate) struct InspectArgs {
    /// Names or IDs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Flags of `history`.
#[derive(clap::Args, Debug)]
pub(crate) struct HistoryArgs {
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

/// Flags of `pull`.
#[derive(clap::Args, Debug)]
pub(crate) struct PullArgs {
    /// Platform to fetch
    #[arg(long)]
    platform: Option<String>,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    name: String,
}

/// Flags of `push`.
#[derive(clap::Args, Debug)]
pub(crate) struct PushArgs {
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    name: String,
}

pub(crate) fn images(args: &ImagesArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let wanted = args.name.as_deref().map(str::parse::<Reference>).transpose()?;
    let tagged = args.name.as_deref().is_some_and(|n| n.rsplit('/').next().is_some_and(|last| last.contains(':')));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if !args.quiet {
        let digest = if args.digests { format!("{:<72}", "DIGEST") } else { String::new() };
        writeln!(out, "{:<30} {:<15} {digest}{:<15} {:<18} SIZE", "REPOSITORY", "TAG", "IMAGE ID", "CREATED")?;
    }
    for image in engine.list()? {
        let reference: Reference = image.name.parse()?;
        if wanted.as_ref().is_some_and(|w| w.name() != reference.name() || (tagged && w.tag != reference.tag)) {
            continue;
        }
        let id = if args.no_trunc { image.id.to_string() } else { image.id.hex()[..12].to_owned() };
        if args.quiet {
            writeln!(out, "{id}")?;
            continue;
        }
        let familiar = reference.familiar();
        let (repository, tag) = familiar.rsplit_once(':').unwrap_or((&familiar, "<none>"));
        let digest = if args.digests { format!("{:<72}", image.target.to_string()) } else { String::new() };
        writeln!(
            out,
            "{repository:<30} {tag:<15} {digest}{id:<15} {:<18} {}",
            time::ago(image.updated),
            bytes(image.size)
        )?;
    }
    out.flush()?;
    Ok(Outcome::Success)
}

pub(crate) fn inspect(args: &InspectArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let all = args.names.iter().map(|n| engine.inspect(n)).collect::<Result<Vec<_>, _>>()?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
    Ok(Outcome::Success)
}

pub(crate) fn history(args: &HistoryArgs, global: &Global) -> Result<Outcome> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(out, "{:<22} {:<60} {:<10} COMMENT", "CREATED", "CREATED BY", "SIZE")?;
    for line in global.engine()?.history(&args.name)? {
        let text = line.created_by.replace(['\n', '\t'], " ");
        let by: String = if args.no_trunc || text.chars().count() <= 58 {
            text
        } else {
            text.chars().take(57).chain(['…']).collect()
        };
        let created: String = line.created.chars().take(19).collect();
        writeln!(out, "{created:<22} {by:<60} {:<10} {}", bytes(line.size), line.comment)?;
    }
    out.flush()?;
    Ok(Outcome::Success)
}

pub(crate) fn tag(args: &TagArgs, global: &Global) -> Result<Outcome> {
    global.engine()?.tag(&args.source, &full_name(&args.target)?)?;
    Ok(Outcome::Success)
}

pub(crate) fn rmi(args: &RmiArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    for name in &args.names {
        for line in engine.remove(name, args.force)? {
            writeln!(std::io::stdout(), "{line}")?;
        }
    }
    Ok(Outcome::Success)
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
            let part = path.with_extension(format!("part-{}", std::process::id()));
            let file = std::fs::File::create(&part).with_context(|| format!("cannot write `{}`", part.display()))?;
            let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
            let saved = engine.save(&args.names, &mut out).map_err(anyhow::Error::from).and_then(|()| Ok(out.flush()?));
            if let Err(error) = saved {
                // The error matters more than a part that stays.
                let _ = std::fs::remove_file(&part);
                return Err(error);
            }
            std::fs::rename(&part, path).with_context(|| format!("cannot write `{}`", path.display()))?;
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

pub(crate) fn pull(args: &PullArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let platform = args.platform.as_deref().map(Platform::parse).transpose()?;
    let progress = Progress::start(if args.quiet { Mode::Quiet } else { Mode::Auto });
    let pulled = engine.pull(&args.name, platform.as_ref(), progress.sink());
    progress.finish();
    let digest = pulled?;
    let mut out = std::io::stdout().lock();
    if !args.quiet {
        writeln!(out, "Digest: {digest}")?;
    }
    writeln!(out, "{}", args.name.parse::<Reference>()?)?;
    Ok(Outcome::Success)
}

pub(crate) fn push(args: &PushArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let progress = Progress::start(if args.quiet { Mode::Quiet } else { Mode::Auto });
    let pushed = engine.push(&full_name(&args.name)?, progress.sink());
    progress.finish();
    let digest = pushed?;
    if !args.quiet {
        writeln!(std::io::stdout(), "digest: {digest}")?;
    }
    Ok(Outcome::Success)
}
