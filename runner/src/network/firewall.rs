//! The way through the host's own firewall.
//!
//! What one chain drops, no other can let pass. Where `iptables` drops what is forwarded, as docker and ufw have it, rules of
//! ours go first in its chain: as long as a network is used, and marked with its table's name. Other chains that drop are in
//! the way.

use super::error::{NetworkError, Trying};
use super::nftables::{Barrier, Batch, Filters, Rule};
use rustix::io::Errno;

/// The chain that `iptables` keeps for packets that pass through.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
/// Marks of steps begin so, and go on with the number of the process that runs them.
pub(super) const STEPS: &str = "xbuild-steps-";

/// Lets through what comes from and goes to links whose names begin so, or have this name.
pub(super) fn open(filters: &mut Filters, mark: &str, link: &Link) -> Result<(), NetworkError> {
    let barriers = filters.barriers().trying(|| "list chains of nf_tables".to_owned())?;
    let (passable, others): (Vec<_>, Vec<_>) = barriers.into_iter().partition(is_of_iptables);
    if let Some(Barrier { table, chain, .. }) = others.into_iter().next() {
        return Err(NetworkError::Firewall { table, chain });
    }
    if passable.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    let gone = |own: &str| own == mark || is_of_the_dead(own);
    for (handle, _) in marked(filters)?.into_iter().filter(|(_, own)| gone(own)) {
        batch.remove_rule(TABLE, CHAIN, handle);
    }
    batch.insert_rule(TABLE, CHAIN, mark, link.arrives().accept());
    batch.insert_rule(TABLE, CHAIN, mark, link.leaves().accept());
    filters.commit(batch).trying(|| format!("add rules to the chain `{CHAIN}` of nf_tables"))
}

/// Takes back what was added under this mark. Another process may do the same at this moment.
pub(super) fn close(filters: &mut Filters, mark: &str) -> Result<(), NetworkError> {
    let mut rules = marked(filters)?;
    rules.retain(|(_, own)| own == mark);
    if rules.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for (handle, _) in rules {
        batch.remove_rule(TABLE, CHAIN, handle);
    }
    match filters.commit(batch) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).trying(|| format!("remove rules from the chain `{CHAIN}` of nf_tables")),
    }
}

/// Which links rules are for.
pub(super) enum Link<'a> {
    Named(&'a str),
    Prefixed(&'a str),
}

impl Link<'_> {
    fn arrives(&self) -> Rule {
        match self {
            Link::Named(name) => Rule::new().in_link(true, name),
            Link::Prefixed(prefix) => Rule::new().in_links(true, prefix),
        }
    }

    fn leaves(&self) -> Rule {
        match self {
            Link::Named(name) => Rule::new().out_link(true, name),
            Link::Prefixed(prefix) => Rule::new().out_links(true, prefix),
        }
    }
}

fn is_of_iptables(barrier: &Barrier) -> bool {
    barrier.ipv4 && barrier.table == TABLE && barrier.chain == CHAIN
}

/// Handles and marks of our rules.
fn marked(filters: &mut Filters) -> Result<Vec<(u64, String)>, NetworkError> {
    match filters.rules(TABLE, CHAIN) {
        Ok(rules) => Ok(rules.into_iter().filter(|(_, comment)| comment.starts_with("xbuild-")).collect()),
        Err(Errno::NOENT) => Ok(Vec::new()),
        Err(error) => Err(error).trying(|| format!("list rules of the chain `{CHAIN}` of nf_tables")),
    }
}

/// Whether a mark is that of a process which was killed.
fn is_of_the_dead(mark: &str) -> bool {
    let process = mark.strip_prefix(STEPS).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    process.is_some_and(|process| !std::path::Path::new("/proc").join(process.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_whose_they_are() {
        assert!(!is_of_the_dead(&format!("{STEPS}{}-12ab", std::process::id())));
        assert!(is_of_the_dead(&format!("{STEPS}4294967295-12ab")));
        assert!(!is_of_the_dead("xbuild-0123456789ab"));
    }
}
