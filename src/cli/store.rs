//! `du`, `prune`, `store`.

use super::values::{duration, size};
use super::{Global, Outcome, time};
use crate::progress::bytes;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, IsTerminal, Write};
use xbuild_cache::{Problem, PruneFilter, UsageKind};
use xbuild_runner::container::clock;
use xbuild_runner::network::Networks;

/// Flags of `du`.
#[derive(clap::Args, Debug)]
pub(crate) struct DuArgs {
    /// Show every field of every entry
    #[arg(long)]
    verbose: bool,
}

/// Flags of `prune`.
#[derive(clap::Args, Debug)]
pub(crate) struct PruneArgs {
    /// Remove everything that no image holds
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Filter: `until=24h`, `unused-for=24h`, `type=regular|exec.cachemount`, `description~=text`
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Keep this much
    #[arg(long, alias = "keep-bytes", value_name = "BYTES")]
    keep_storage: Option<String>,
    /// Keep what was used within this time
    #[arg(long, value_name = "DURATION")]
    keep_duration: Option<String>,
}

/// `xbuild store …`.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Verify every row, file and digest
    Check {
        /// Drop what does not hold
        #[arg(long)]
        repair: bool,
    },
    /// Free what was thrown away, and cache where space is low
    Sweep,
}

fn kind(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Regular => "regular",
        UsageKind::Image => "image",
        UsageKind::CacheMount => "exec.cachemount",
        UsageKind::Blob => "blob",
    }
}

pub(crate) fn du(args: &DuArgs, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    let usage = engine.store().usage()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if !args.verbose {
        writeln!(out, "{:<72} {:<12} {:<10} LAST ACCESSED", "ID", "RECLAIMABLE", "SIZE")?;
    }
    for entry in &usage {
        if args.verbose {
            writeln!(out, "ID:           {}\nType:         {}", entry.id, kind(entry.kind))?;
            writeln!(out, "Created at:   {}\nLast used:    {}", time::ago(entry.created), time::ago(entry.last_used))?;
            writeln!(out, "Usage count:  {}\nReclaimable:  {}", entry.uses, entry.reclaimable)?;
            writeln!(
                out,
                "Size:         {}\nDescription:  {}\n",
                bytes(entry.size),
                crate::progress::harmless(&entry.description)
            )?;
        } else {
            writeln!(
                out,
                "{:<72} {:<12} {:<10} {}",
                entry.id,
                entry.reclaimable,
                bytes(entry.size),
                time::ago(entry.last_used)
            )?;
        }
    }
    let sum = |reclaimable: bool| usage.iter().filter(|e| !reclaimable || e.reclaimable).map(|e| e.size).sum::<u64>();
    writeln!(out, "Reclaimable:\t{}\nTotal:\t\t{}", bytes(sum(true)), bytes(sum(false)))?;
    out.flush()?;
    Ok(Outcome::Success)
}

pub(crate) fn prune(args: &PruneArgs, global: &Global) -> Result<Outcome> {
    let filter = prune_filter(args)?;
    if !args.force && std::io::stdin().is_terminal() {
        eprint!("This removes recorded steps that no image holds. Continue? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Ok(Outcome::Success);
        }
    }
    let engine = global.engine()?;
    let pruned = engine.store().prune(&filter)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    pruned.entries.iter().try_for_each(|entry| writeln!(out, "{entry}"))?;
    writeln!(out, "Total:\t{}", bytes(pruned.bytes))?;
    out.flush()?;
    global.sweep_later(&engine);
    Ok(Outcome::Success)
}

fn prune_filter(args: &PruneArgs) -> Result<PruneFilter> {
    let mut filter = PruneFilter { all: args.all, ..PruneFilter::default() };
    filter.keep_bytes = args.keep_storage.as_deref().map(size).transpose()?;
    filter.unused_for = args.keep_duration.as_deref().map(duration).transpose()?;
    for text in &args.filter {
        let (key, value) = text.split_once('=').with_context(|| format!("the filter `{text}` is not key=value"))?;
        match key {
            "until" | "unused-for" => filter.unused_for = Some(duration(value)?),
            "type" if value == "regular" => filter.kind = Some("regular"),
            "type" if value == "exec.cachemount" => filter.kind = Some("exec.cachemount"),
            "description" | "description~" => filter.description = Some(value.to_owned()),
            _ => bail!("unknown filter `{text}` (until=, unused-for=, type=regular|exec.cachemount, description~=)"),
        }
    }
    Ok(filter)
}

pub(crate) fn store(command: &StoreCommand, global: &Global) -> Result<Outcome> {
    let engine = global.engine()?;
    match command {
        StoreCommand::Sweep => {
            engine.store().collect()?;
            Ok(Outcome::Success)
        }
        StoreCommand::Check { repair } => {
            let mut problems = engine.store().check(*repair)?;
            let networks = Networks::open(engine.store().root(), clock::stamp)?.check(*repair)?;
            problems.extend(networks.into_iter().map(|path| Problem {
                what: format!("the network in `{}` cannot be understood", path.display()),
                repaired: *repair,
            }));
            let mut out = std::io::stdout().lock();
            for problem in &problems {
                writeln!(out, "{}{}", if problem.repaired { "repaired: " } else { "" }, problem.what)?;
            }
            writeln!(out, "{} problems", problems.len())?;
            Ok(if problems.iter().all(|p| p.repaired) { Outcome::Success } else { Outcome::Code(1) })
        }
    }
}
