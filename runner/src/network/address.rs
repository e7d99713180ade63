//! Networks of IPv4.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A network: its first address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Net4 {
    address: Ipv4Addr,
    prefix: u8,
}

impl Net4 {
    /// The network that `address` is in; a prefix longer than 32 counts as 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask_bits(prefix)), prefix }
    }

    /// A network that is written down, with no bits after its prefix.
    pub(super) const fn fixed(address: Ipv4Addr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// The first address, which names the network.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.address
    }

    /// The last address, for broadcasts.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask_bits(self.prefix))
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix))
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask_bits(self.prefix) == self.address.to_bits()
    }

    /// Whether any address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether all addresses of `other` are in it.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// All addresses.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.address.to_bits()..=self.last().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// Addresses that hosts can have: all but the first and the last.
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.address.to_bits().saturating_add(1)..self.last().to_bits()).map(Ipv4Addr::from_bits)
    }
}

fn mask_bits(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Net4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Net4> for String {
    fn from(net: Net4) -> Self {
        net.to_string()
    }
}

impl TryFrom<String> for Net4 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Net4 {
    type Err = String;

    /// Reads `10.0.0.0/8`; bits after the prefix are refused by nobody and count as zero, as docker has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("invalid CIDR address: {text}");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(wrong)?;
        Ok(Self::new(address.parse().map_err(|_| wrong())?, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net4 {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_and_written() {
        assert_eq!(net("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(net("0.0.0.0/0").last(), Ipv4Addr::BROADCAST);
        assert_eq!(net("10.0.0.4/30").hosts().collect::<Vec<_>>(), [[10, 0, 0, 5], [10, 0, 0, 6]].map(Ipv4Addr::from));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "/8", "a/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Net4>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn overlaps_are_seen_both_ways() {
        let overlaps = |a: &str, b: &str| (net(a).overlaps(net(b)), net(b).overlaps(net(a)));
        assert_eq!(overlaps("10.0.0.0/8", "10.9.0.0/16"), (true, true));
        assert_eq!(overlaps("10.0.0.0/24", "10.0.1.0/24"), (false, false));
        assert_eq!(overlaps("0.0.0.0/0", "10.0.1.0/24"), (true, true));
        assert!(net("10.0.0.0/8").includes(net("10.9.0.0/16")) && !net("10.9.0.0/16").includes(net("10.0.0.0/8")));
    }
}
