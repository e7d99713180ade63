//! The host's side of a network: a bridge and a table of nf_tables.
//!
//! Both are there while containers use the network. The table's rules follow from the network alone; what belongs to
//! single containers (published ports) is in tables of theirs, see [`super::ports`].

use super::error::{NetworkError, Trying};
use super::firewall::{self, Link};
use super::links::Links;
use super::nftables::{Batch, Filters, Hook, Rule};
use super::records::{Addresses, BRIDGE_PREFIX, MTU_OPTION, NetworkRecord};
use super::{address::Net4, host};
use rustix::io::Errno;
use std::net::Ipv4Addr;

const LOOPBACK: Net4 = Net4::fixed(Ipv4Addr::new(127, 0, 0, 0), 8);

/// Makes the bridge and its table if they are not there. From a thread in the host's network namespace, with the lock.
pub(super) fn ensure(network: &NetworkRecord, addresses: &Addresses, links: &mut Links) -> Result<u32, NetworkError> {
    let name = network.bridge();
    let step = |what: &str| format!("{what} the bridge `{name}` of the network `{}`", network.name);
    match links.index(&name) {
        Ok(index) => return Ok(index),
        Err(Errno::NODEV) => {}
        Err(error) => return Err(error).trying(|| step("look for")),
    }
    let mut filters = Filters::open().trying(|| "open a socket to nf_tables".to_owned())?;
    host::forward_packets()?;
    let routes = links.routes().trying(|| "list the host's routes".to_owned())?;
    if routes.iter().any(|route| route.to.prefix() > 0 && route.to.overlaps(addresses.subnet)) {
        return Err(NetworkError::Overlap(addresses.subnet));
    }
    let mtu = match network.options.get(MTU_OPTION).and_then(|mtu| mtu.parse().ok()) {
        Some(asked) => asked,
        None => links.mtu_of_default_route(&routes).trying(|| "look at the host's default route".to_owned())?,
    };
    links.add_bridge(&name, mtu).trying(|| step("make"))?;
    let mut set_up = || {
        let made = match filters.commit(rules(network, addresses)) {
            // Left over of a bridge that somebody removed by hand. It is not removed just in case: the kernel waits for all
            // processors when something was removed.
            Err(Errno::EXIST) => {
                let mut batch = Batch::new();
                batch.remove_table(&table(network));
                filters.commit(batch).and_then(|()| filters.commit(rules(network, addresses)))
            }
            made => made,
        };
        made.trying(|| format!("make the table `{}` of nf_tables", table(network)))?;
        let index = links.index(&name).trying(|| step("look for"))?;
        firewall::open(&mut filters, &table(network), &Link::Named(&name))?;
        // For the host's own connections to published ports, which come from 127.0.0.1.
        host::set_link_option(&name, "route_localnet", "1")?;
        links.start(index, None).trying(|| step("start"))?;
        links.add_address(index, addresses.gateway, addresses.subnet.prefix()).trying(|| step("give an address to"))?;
        Ok(index)
    };
    let made = set_up();
    if made.is_err() {
        // Half a bridge would pass for a whole one.
        let _ = links.remove(&name);
    }
    made
}

/// Whether the bridge is there.
pub(super) fn is_there(network: &NetworkRecord) -> Result<bool, NetworkError> {
    let links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
    match links.index(&network.bridge()) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(error) => Err(error).trying(|| format!("look for the bridge `{}`", network.bridge())),
    }
}

/// Removes the bridge and its table if they are there and nobody uses them, which the caller knows and keeps so. Slow.
pub(super) fn remove_unused(network: &NetworkRecord) -> Result<(), NetworkError> {
    let mut links = Links::open().trying(|| "open a socket to the host's links".to_owned())?;
    match links.remove(&network.bridge()) {
        Ok(()) => {}
        Err(Errno::NODEV) => return Ok(()),
        Err(error) => return Err(error).trying(|| format!("remove the bridge `{}`", network.bridge())),
    }
    let mut filters = Filters::open().trying(|| "open a socket to nf_tables".to_owned())?;
    let mut batch = Batch::new();
    batch.remove_table(&table(network));
    firewall::close(&mut filters, &table(network))?;
    match filters.commit(batch) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).trying(|| format!("remove the table `{}` of nf_tables", table(network))),
    }
}

fn table(network: &NetworkRecord) -> String {
    format!("xbuild-{}", &network.id[..12])
}

/// The way out for containers, and no way in but to published ports and for answers.
fn rules(network: &NetworkRecord, addresses: &Addresses) -> Batch {
    let (table, bridge, subnet) = (table(network), network.bridge(), addresses.subnet);
    let from = || Rule::new().in_link(true, &bridge).out_link(false, &bridge);
    let to = || Rule::new().out_link(true, &bridge).in_link(false, &bridge);
    let mut batch = Batch::new();
    batch.add_table(&table);
    // With a route for loopback on the bridge, a container could address the host's.
    batch.add_chain(
        &table,
        Hook::PreroutingRaw,
        [Rule::new().in_link(true, &bridge).destination(true, LOOPBACK).drop()],
    );
    let forward = if network.internal {
        vec![from().drop(), to().drop()]
    } else {
        vec![from().out_links(true, BRIDGE_PREFIX).untranslated().drop(), to().unasked().untranslated().drop()]
    };
    batch.add_chain(&table, Hook::Forward, forward);
    let out = Rule::new().source(true, subnet).out_link(false, &bridge).masquerade();
    // Published ports, asked for from the network itself or from the host's loopback: answers have to come back here.
    let back = |net| Rule::new().source(true, net).out_link(true, &bridge).translated().masquerade();
    let back = [back(subnet), back(LOOPBACK)];
    batch.add_chain(&table, Hook::PostroutingNat, (!network.internal).then_some(out).into_iter().chain(back));
    batch
}
