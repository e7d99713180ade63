//! `container prune`, `volume prune`, and what they have in common with others.

use super::list::{has_label, keyed};
use super::volume::{say_reclaimed, seconds};
use crate::cli::{Global, Outcome};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use xbuild_runner::container::clock;
use xbuild_runner::container::volumes::Volumes;
use xbuild_runner::container::{Containers, Status, remove};
use xbuild_runner::network::Networks;

/// Flags of every prune.
#[derive(clap::Args, Debug)]
pub(crate) struct PruneArgs {
    /// Only what fits (`label=k=v`, `label!=k`, `until=24h`)
    #[arg(long)]
    pub(crate) filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Flags of `volume prune`.
#[derive(clap::Args, Debug)]
pub(crate) struct VolumePruneArgs {
    /// Also volumes that have a name
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) common: PruneArgs,
}

/// What a prune may take.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    labels: Vec<String>,
    without: Vec<String>,
    until: Option<i64>,
}

impl Chosen {
    pub(crate) fn parse(filters: &[String]) -> Result<Chosen> {
        let (negative, positive): (Vec<&String>, Vec<&String>) =
            filters.iter().partition(|filter| filter.starts_with("label!="));
        let positive: Vec<String> = positive.into_iter().cloned().collect();
        let mut keyed = keyed(&positive, &["all", "dangling", "label", "until"])?;
        let until = match keyed.remove("until").unwrap_or_default().as_slice() {
            [] => None,
            [one] => Some(super::values::moment(one)?.0),
            _ => bail!("more than one until filter specified"),
        };
        Ok(Chosen {
            labels: keyed.remove("label").unwrap_or_default(),
            without: negative.iter().map(|filter| filter["label!=".len()..].to_owned()).collect(),
            until,
        })
    }

    /// Whether something with these labels, made then, may go.
    pub(crate) fn takes(&self, labels: &BTreeMap<String, String>, created: i64) -> bool {
        self.labels.iter().all(|wanted| has_label(labels, wanted))
            && !self.without.iter().any(|unwanted| has_label(labels, unwanted))
            && self.until.is_none_or(|until| created < until)
    }
}

/// Asks before something is removed; nobody to ask is a no.
pub(crate) fn confirmed(force: bool, what: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

pub(crate) fn containers(args: &PruneArgs, global: &Global) -> Result<Outcome> {
    if !confirmed(args.force, "all stopped containers")? {
        return Ok(Outcome::Success);
    }
    let freed = prune_containers(&global.containers()?, &Chosen::parse(&args.filter)?)?;
    say_reclaimed(freed)?;
    Ok(Outcome::Success)
}

/// Removes containers that do not run; says which, and gives the bytes.
pub(crate) fn prune_containers(containers: &Containers, chosen: &Chosen) -> Result<u64> {
    let mut freed = 0;
    let mut gone = Vec::new();
    for found in containers.list()? {
        let idle = matches!(found.state.status, Status::Created | Status::Exited | Status::Dead);
        if !idle || !chosen.takes(&found.container.config.labels, seconds(&found.container.created)) {
            continue;
        }
        // Otherwise somebody else has it in hand.
        let Ok(Some(_lock)) = super::lifecycle::lock_idle(containers, &found.container.id) else {
            continue;
        };
        freed += super::changes::disk_size(&found.directory);
        remove(containers, &found.container, false)?;
        gone.push(found.container.id);
    }
    list_gone("Containers", &gone)?;
    Ok(freed)
}

/// Says what was removed.
pub(crate) fn list_gone(what: &str, gone: &[String]) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "Deleted {what}:")?;
    gone.iter().try_for_each(|one| writeln!(out, "{one}"))?;
    Ok(writeln!(out)?)
}

pub(crate) fn volumes(args: &VolumePruneArgs, containers: &Containers, volumes: &Volumes) -> Result<Outcome> {
    let what = if args.all {
        "all local volumes not used by at least one container"
    } else {
        "anonymous local volumes not used by at least one container"
    };
    if !confirmed(args.common.force, what)? {
        return Ok(Outcome::Success);
    }
    let all = args.all || args.common.filter.iter().any(|filter| matches!(filter.as_str(), "all=1" | "all=true"));
    let freed = prune_volumes(containers, volumes, &Chosen::parse(&args.common.filter)?, all)?;
    say_reclaimed(freed)?;
    Ok(Outcome::Success)
}

/// Removes volumes that no container has; says which, and gives the bytes.
pub(crate) fn prune_volumes(containers: &Containers, volumes: &Volumes, chosen: &Chosen, named: bool) -> Result<u64> {
    let mut freed = 0;
    let mut gone = Vec::new();
    for volume in volumes.list()? {
        let takes = (named || volume.anonymous) && chosen.takes(&volume.labels, seconds(&volume.created_at));
        if takes && volumes.users(containers, &volume.name)?.is_empty() {
            freed += super::changes::disk_size(&volumes.data(&volume.name));
            super::volume::remove(containers, volumes, &volume.name)?;
            gone.push(volume.name);
        }
    }
    list_gone("Volumes", &gone)?;
    Ok(freed)
}

/// Removes networks that no container uses; says which.
pub(crate) fn prune_networks(engine: &xbuild_engine::Engine, chosen: &Chosen) -> Result<()> {
    let networks = Networks::open(engine.store().root(), clock::stamp)?;
    let mut gone = Vec::new();
    for network in networks.list()? {
        let unused = !network.is_predefined() && networks.endpoints(&network)?.is_empty();
        if unused && chosen.takes(&network.labels, seconds(&network.created)) {
            let removed = networks.remove(&network.id)?;
            super::network::event(&engine.containers(), "destroy", &removed, None);
            gone.push(network.name);
        }
    }
    list_gone("Networks", &gone)
}
