//! How a mount and its copies elsewhere learn of mounts that are made below one of them. See mount_namespaces(7).

use serde::{Deserialize, Serialize};
use std::fmt;
use xbuild_sys::MountChange;

/// What passes between a mount and its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// Nothing.
    Private,
    /// Everything, both ways.
    Shared,
    /// What happens at the place that it was copied from.
    Slave,
    /// Nothing, and it cannot be copied.
    Unbindable,
}

/// A propagation type, as mount(8), docker and OCI runtimes write it: `rslave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    kind: Kind,
    /// It goes for mounts below, too.
    recursive: bool,
}

const NAMES: [(&str, Kind); 4] =
    [("private", Kind::Private), ("shared", Kind::Shared), ("slave", Kind::Slave), ("unbindable", Kind::Unbindable)];

impl Propagation {
    /// What mounts have if nothing else is said, in OCI's configurations.
    pub(crate) const RSLAVE: Propagation = Propagation { kind: Kind::Slave, recursive: true };

    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Propagation> {
        let find = |name| NAMES.iter().find(|(own, _)| *own == name).map(|(_, kind)| *kind);
        match find(name) {
            Some(kind) => Some(Propagation { kind, recursive: false }),
            None => Some(Propagation { kind: find(name.strip_prefix('r')?)?, recursive: true }),
        }
    }

    /// All names.
    pub(crate) fn names() -> impl Iterator<Item = String> {
        NAMES.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")])
    }

    /// Mounts stay where they are made.
    #[must_use]
    pub fn is_private(self) -> bool {
        self.kind == Kind::Private
    }

    /// Mounts are passed on both ways.
    pub(crate) fn is_shared(self) -> bool {
        self.kind == Kind::Shared
    }

    /// Nobody may bind it again, which is nothing that a container can be given.
    #[must_use]
    pub fn is_unbindable(self) -> bool {
        self.kind == Kind::Unbindable
    }

    /// The same for all mounts below.
    pub(crate) fn everywhere(self) -> Propagation {
        Propagation { recursive: true, ..self }
    }

    /// What is asked of the kernel, and whether for all mounts below.
    pub(crate) fn change(self) -> (MountChange, bool) {
        let propagation = match self.kind {
            Kind::Private => libc::MS_PRIVATE,
            Kind::Shared => libc::MS_SHARED,
            Kind::Slave => libc::MS_SLAVE,
            Kind::Unbindable => libc::MS_UNBINDABLE,
        };
        (MountChange { propagation, ..MountChange::default() }, self.recursive)
    }
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        write!(f, "{}{name}", if self.recursive { "r" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_and_written() {
        for name in Propagation::names() {
            assert_eq!(Propagation::parse(&name).map(|own| own.to_string()), Some(name));
        }
        for wrong in ["", "r", "rr", "rrshared", "Shared"] {
            assert_eq!(Propagation::parse(wrong), None, "{wrong}");
        }
        assert!(Propagation::parse("rslave") == Some(Propagation::RSLAVE));
    }
}
